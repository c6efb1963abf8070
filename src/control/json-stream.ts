// Requests as QMP reads them: a stream of JSON values, one after the other or across packets, with or without newlines between.
//
// It accepts and refuses what QEMU's does (its docs/interop/qmp-spec.rst, and qemu-storage-daemon, which test/interop/qmp.test.ts asks),
// in the same words. A value is complete with the token that closes its last bracket; a bare number or word only with what follows it.
// Beyond RFC 8259 it takes single quotes, and `\'` in strings.
//
// After a byte that belongs nowhere the tokens so far are forgotten, and everything is skipped up to a control character (but
// no tab), 0xFE, 0xFF or one of `{}[]:,`: a client that sends 0xFF or a newline is always understood again.
//
// A peer makes us hold no more than the limits. QEMU's are 64 MiB, 2^21 tokens and 1024 levels; ours leave room for a transaction of
// thousands of actions.

import { parseTokens, type Token, type TokenType } from './json-parser.ts'
import { readableText } from './json-string.ts'
import type { Json } from './json.ts'

export interface JsonLimits {
  /** Bytes of one value, without what stands between its tokens. */
  readonly bytes: number
  readonly tokens: number
  readonly nesting: number
}

export const requestLimits: JsonLimits = { bytes: 8 << 20, tokens: 1 << 18, nesting: 1024 }

export type JsonItem = { readonly value: Json } | { readonly error: string }

type State =
  | 'start'
  | 'recovery'
  | 'double'
  | 'double-escape'
  | 'single'
  | 'single-escape'
  | 'sign'
  | 'zero'
  | 'digits'
  | 'point'
  | 'fraction'
  | 'e'
  | 'e-sign'
  | 'exponent'
  | 'word'

/** What follows a byte: another state, or the end of a token with this byte, or an error where even the end of the token is none. */
type Step = State | 'structure' | 'end of string' | 'stray'

/** The type of the token that a byte of no other step ends. Without one, it is stray. */
const endsAs: Partial<Record<State, TokenType>> = {
  zero: 'integer',
  digits: 'integer',
  fraction: 'float',
  exponent: 'float',
  word: 'keyword',
}

const bytes = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)
const chars = (text: string) => [...Buffer.from(text)]
const STRUCTURE = chars('{}[]:,')
const DIGITS = chars('0123456789')
const LETTERS = bytes(0x61, 0x7a)
/** 0xFE and 0xFF are in no UTF-8. */
const IN_STRING = bytes(0x20, 0xfd)

/** For each state what the bytes do; a later line wins over an earlier one. */
const steps: Record<State, readonly (readonly [readonly number[], Step])[]> = {
  start: [
    [chars(' \t\r\n'), 'start'],
    [STRUCTURE, 'structure'],
    [chars('"'), 'double'],
    [chars("'"), 'single'],
    [chars('-'), 'sign'],
    [DIGITS, 'digits'],
    [chars('0'), 'zero'],
    [LETTERS, 'word'],
  ],
  recovery: [
    [IN_STRING, 'recovery'],
    [[...bytes(0, 0x1f), ...STRUCTURE, 0xfe, 0xff], 'start'],
    [chars('\t'), 'recovery'],
  ],
  double: [
    [IN_STRING, 'double'],
    [chars('\\'), 'double-escape'],
    [chars('"'), 'end of string'],
  ],
  'double-escape': [[IN_STRING, 'double']],
  single: [
    [IN_STRING, 'single'],
    [chars('\\'), 'single-escape'],
    [chars("'"), 'end of string'],
  ],
  'single-escape': [[IN_STRING, 'single']],
  sign: [
    [DIGITS, 'digits'],
    [chars('0'), 'zero'],
  ],
  // QEMU's has no 0e1, though JSON has.
  zero: [
    [DIGITS, 'stray'],
    [chars('.'), 'point'],
  ],
  digits: [
    [DIGITS, 'digits'],
    [chars('.'), 'point'],
    [chars('eE'), 'e'],
  ],
  point: [[DIGITS, 'fraction']],
  fraction: [
    [DIGITS, 'fraction'],
    [chars('eE'), 'e'],
  ],
  e: [
    [chars('+-'), 'e-sign'],
    [DIGITS, 'exponent'],
  ],
  'e-sign': [[DIGITS, 'exponent']],
  exponent: [[DIGITS, 'exponent']],
  word: [[LETTERS, 'word']],
}

/** A state as the loop over the bytes uses it: what each byte does, the next state itself where it is one. */
interface Row {
  readonly steps: (Row | Exclude<Step, State> | undefined)[]
  readonly endsAs: TokenType | undefined
}

const rows = Object.fromEntries(
  Object.keys(steps).map(state => [state, { steps: Array.from({ length: 256 }), endsAs: endsAs[state as State] }]),
) as unknown as Record<State, Row>

for (const [state, lines] of Object.entries(steps)) {
  for (const [of, step] of lines)
    for (const byte of of) rows[state as State].steps[byte] = step in rows ? rows[step as State] : (step as Exclude<Step, State>)
}

const { start, recovery } = rows

export class JsonStream {
  #row = start
  /** What earlier chunks held of the token that is being read, a character for each byte. */
  #begun = ''
  #tokens: Token[] = []
  /** Of all tokens so far. */
  #bytes = 0
  #braces = 0
  #brackets = 0

  constructor(private readonly limits: JsonLimits = requestLimits) {}

  /** What is complete with these bytes. It must be iterated to its end before the next call. */
  *feed(chunk: Buffer): Generator<JsonItem> {
    /** Where the token begins in this chunk. */
    let from = 0
    let at = 0
    const token = () => this.#begun + chunk.toString('latin1', from, at)
    const begin = (row: Row) => {
      this.#row = row
      this.#begun = ''
      from = at
    }
    while (at < chunk.length) {
      const row = this.#row
      const byte = chunk[at]!
      const step = row.steps[byte]
      if (step === undefined && row.endsAs) {
        yield* some(this.#token(row.endsAs, token()))
        begin(start) // and looks at the byte again
        continue
      }
      if (row === recovery && step === start) {
        begin(start) // the same
        continue
      }
      at++
      if (step === undefined || step === 'stray') {
        yield this.#failed(`JSON parse error, stray '${readable(token())}'`)
        begin(recovery)
      } else if (step === 'structure') {
        yield* some(this.#token(String.fromCharCode(byte) as TokenType, ''))
        begin(start)
      } else if (step === 'end of string') {
        yield* some(this.#token('string', token()))
        begin(start)
      } else {
        this.#row = step
        if (step === start || step === recovery) from = at
        else if (this.#begun.length + at - from > this.limits.bytes) {
          yield this.#failed('JSON token size limit exceeded')
          begin(start)
        }
      }
    }
    this.#begun = token()
  }

  /** The value that this token ends, or the error that it is. */
  #token(type: TokenType, text: string): JsonItem | undefined {
    if (type === '{') this.#braces++
    else if (type === '}') this.#braces--
    else if (type === '[') this.#brackets++
    else if (type === ']') this.#brackets--
    this.#bytes += Math.max(1, text.length)
    if (this.#bytes > this.limits.bytes) return this.#failed('JSON token size limit exceeded')
    if (this.#tokens.length === this.limits.tokens) return this.#failed('JSON token count limit exceeded')
    if (this.#braces + this.#brackets > this.limits.nesting) return this.#failed('JSON nesting depth limit exceeded')
    this.#tokens.push({ type, text })
    const open = (this.#braces > 0 || this.#brackets > 0) && this.#braces >= 0 && this.#brackets >= 0
    return open ? undefined : this.#forget(parseTokens(this.#tokens))
  }

  #failed(error: string) {
    return this.#forget({ error })
  }

  #forget(item: JsonItem): JsonItem {
    this.#tokens = []
    this.#bytes = 0
    this.#braces = 0
    this.#brackets = 0
    return item
  }
}

const none: readonly JsonItem[] = []
const some = (item: JsonItem | undefined) => (item ? [item] : none)

/** For an error message; QEMU's end at a zero byte. */
const readable = (token: string) => readableText(token.split('\0', 1)[0]!)
