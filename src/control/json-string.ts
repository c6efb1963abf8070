// The text of a JSON string token: escapes and UTF-8, checked as strictly as QEMU does.
//
// Refused are overlong forms, surrogates and the code points that are no characters (U+FFFE and the like). As in QEMU's "modified
// UTF-8" the two bytes C0 80 are a zero character.

import { JsonError } from './json.ts'

const escapes: Record<string, string> = { b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }
const ESCAPED_AS_IT_IS = '"\'\\/'

/** Takes the token with its quotes, a character for each byte. */
export function decodeString(token: string): string {
  const text = token.slice(1, -1)
  if (!/[\\\x80-\xff]/.test(text)) return text
  const special = /\\(u.{0,4}|.)|[\x80-\xff]+/gs
  let result = ''
  let at = 0
  for (let match = special.exec(text); match; match = special.exec(text)) {
    result += text.slice(at, match.index)
    if (match[0][0] !== '\\') result += utf8(match[0])
    else if (match[1]![0] === 'u') result += unicode(token, match.index + 1, special)
    else result += escape(match[1]!)
    at = special.lastIndex
  }
  return result + text.slice(at)
}

function escape(char: string) {
  if (ESCAPED_AS_IT_IS.includes(char)) return char
  const meant = escapes[char]
  if (meant === undefined) throw new JsonError('invalid escape sequence in string')
  return meant
}

/** The character of the \\uXXXX at `at` of the token; moves `special` behind a second one that makes a pair with it. */
function unicode(token: string, at: number, special: RegExp): string {
  const [first, second] = [hex(token, at), hex(token, at + 6)]
  const isPair = first >= 0xd800 && first <= 0xdbff && second >= 0xdc00 && second <= 0xdfff
  const point = isPair ? 0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff) : first
  if (!isCharacter(point)) {
    throw new JsonError(`${readableText(token.slice(at, at + 6))} is not a valid Unicode character`)
  }
  if (isPair) special.lastIndex += 6
  return String.fromCodePoint(point)
}

function hex(token: string, at: number) {
  const [, digits] = /^\\u([\da-f]{4})$/i.exec(token.slice(at, at + 6)) ?? []
  return digits === undefined ? -1 : Number.parseInt(digits, 16)
}

function utf8(bytes: string): string {
  return [...sequences(bytes)]
    .map(point => {
      if (point < 0) throw new JsonError('invalid UTF-8 sequence in string')
      return String.fromCodePoint(point)
    })
    .join('')
}

/** For people: what is no text is shown as U+FFFD. Takes a character for each byte. */
export const readableText = (bytes: string) =>
  [...sequences(bytes)].map(point => (point < 0 ? '\ufffd' : String.fromCodePoint(point))).join('')

/** The code point of each UTF-8 sequence, or -1 where it is none or not allowed. */
function* sequences(bytes: string): Generator<number> {
  for (let at = 0; at < bytes.length;) {
    const lead = bytes.charCodeAt(at++)
    // How many bytes the lead byte announces; QEMU's idea of it is the one before RFC 3629.
    const length = Math.clz32(~lead << 24)
    if (length === 0) yield lead
    else if (length === 1 || length > 6) yield -1
    else {
      let point = lead & (0x7f >> length)
      let more = 1
      for (; more < length && (bytes.charCodeAt(at) & 0xc0) === 0x80; more++)
        point = (point << 6) | (bytes.charCodeAt(at++) & 0x3f)
      const isWhole = more === length && isShortest(point, length)
      yield isWhole && isCharacter(point) ? point : -1
    }
  }
}

/** Whether no shorter sequence says the same; a zero in two bytes is allowed. */
const isShortest = (point: number, length: number) =>
  point >= [0x80, 0x800, 0x10000, Infinity][Math.min(length, 5) - 2]! || (point === 0 && length === 2)

const isCharacter = (point: number) =>
  point >= 0 &&
  point <= 0x10ffff &&
  !(point >= 0xd800 && point <= 0xdfff) &&
  !(point >= 0xfdd0 && point <= 0xfdef) &&
  (point & 0xfffe) !== 0xfffe
