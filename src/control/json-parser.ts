// Makes a value of the tokens of one, and says what is wrong with them in QEMU's words (qobject/json-parser.c has them).

import { Float, JsonError, type Json } from './json.ts'
import { decodeString } from './json-string.ts'
import type { JsonItem } from './json-stream.ts'

export type TokenType = '{' | '}' | '[' | ']' | ':' | ',' | 'string' | 'integer' | 'float' | 'keyword'

export interface Token {
  readonly type: TokenType
  /** A character for each byte. */
  readonly text: string
}

/** The nesting has been limited by whoever collected the tokens: the parser is recursive. */
export function parseTokens(tokens: readonly Token[]): JsonItem {
  try {
    return { value: new Parser(tokens).value() }
  } catch (error) {
    if (error instanceof JsonError) return { error: `JSON parse error, ${error.message}` }
    throw error
  }
}

class Parser {
  #at = 0

  constructor(private readonly tokens: readonly Token[]) {}

  value(): Json {
    const { type, text } = this.#next()
    switch (type) {
      case '{':
        return this.#object()
      case '[':
        return this.#array()
      case 'string':
        return decodeString(text)
      case 'integer':
        return integer(text)
      case 'float':
        return new Float(Number(text))
      case 'keyword':
        return keyword(text)
      default:
        throw new JsonError('expecting value')
    }
  }

  #object(): Json {
    const object = Object.create(null) as Record<string, Json>
    if (this.#skip('}')) return object
    do {
      const key = this.value()
      if (typeof key !== 'string') throw new JsonError('key is not a string in object')
      if (!this.#skip(':')) throw new JsonError('missing : in object pair')
      const value = this.value()
      if (key in object) throw new JsonError('duplicate key')
      object[key] = value
    } while (this.#more('}', 'dict'))
    return object
  }

  #array(): Json {
    const array: Json[] = []
    if (this.#skip(']')) return array
    do array.push(this.value())
    while (this.#more(']', 'list'))
    return array
  }

  /** Whether a comma comes, and not the end. */
  #more(end: TokenType, where: string) {
    const { type } = this.#next()
    if (type !== ',' && type !== end) throw new JsonError(`expected separator in ${where}`)
    return type === ','
  }

  #skip(type: TokenType) {
    if (this.tokens[this.#at]?.type !== type) return false
    this.#at++
    return true
  }

  /** The end can come too early where the brackets match in number and not in kind. */
  #next(): Token {
    const token = this.tokens[this.#at++]
    if (!token) throw new JsonError('premature EOI')
    return token
  }
}

function keyword(text: string) {
  if (text === 'true' || text === 'false') return text === 'true'
  if (text === 'null') return null
  throw new JsonError(`invalid keyword '${text}'`)
}

const MIN_INTEGER = -(2n ** 63n)
const MAX_INTEGER = 2n ** 64n - 1n
/** Of an integer of 64 bits, with its sign. No leading zeroes get here. */
const MAX_DIGITS = 20

function integer(text: string): Json {
  const number = Number(text)
  if (Number.isSafeInteger(number)) return number === 0 ? 0 : number
  if (text.length > MAX_DIGITS) return new Float(number)
  const exact = BigInt(text)
  return exact < MIN_INTEGER || exact > MAX_INTEGER ? new Float(number) : exact
}
