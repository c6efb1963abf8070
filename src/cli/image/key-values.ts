// The options of -o: name=value,name=value; a comma within a value is written twice.

import { InvalidParameter } from '../../base/errors.ts'
import { nearest } from '../../base/nearest.ts'
import { sizeOf } from './sizes.ts'

export type OptionKind = 'size' | 'text' | 'switch' | 'number' | readonly string[]

export interface KnownOption {
  readonly kind: OptionKind
  readonly help: string
}

/** Each with its value by its kind. @throws InvalidParameter */
export function keyValues(texts: readonly string[], known: Readonly<Record<string, KnownOption>>, format: string) {
  const values: Record<string, string | number | boolean> = {}
  for (const pair of texts.flatMap(pairsOf)) {
    const [, name = '', text] = /^([^=]*)(?:=([^]*))?$/.exec(pair)!
    const option = Object.hasOwn(known, name) ? known[name]! : undefined
    if (!option) {
      const meant = nearest(name, Object.keys(known))
      throw new InvalidParameter(
        `Invalid parameter '${name}' for ${format}; ${meant ? `did you mean ${meant}?` : '-o help lists what there is'}`,
      )
    }
    values[name] = valueOf(name, option.kind, text)
  }
  return values
}

export const wantsHelp = (texts: readonly string[]) => texts.flatMap(pairsOf).some(pair => pair === 'help' || pair === '?')

export const helpText = (known: Readonly<Record<string, KnownOption>>, format: string) => {
  const lines = Object.entries(known).map(([name, { kind, help }]) => `  ${`${name}=<${kindName(kind)}>`.padEnd(22)} - ${help}\n`)
  return `Supported ${format} options:\n${lines.join('')}`
}

const kindName = (kind: OptionKind) =>
  kind === 'switch' ? 'bool (on/off)' : kind === 'size' ? 'size' : kind === 'number' ? 'num' : 'str'

const pairsOf = (text: string) =>
  text
    .replaceAll(',,', '\0')
    .split(',')
    .map(pair => pair.replaceAll('\0', ','))
    .filter(Boolean)

function valueOf(name: string, kind: OptionKind, text: string | undefined): string | number | boolean {
  if (kind === 'switch') {
    if (text === undefined || text === 'on') return true
    if (text === 'off') return false
    throw new InvalidParameter(`Parameter '${name}' expects 'on' or 'off'`)
  }
  if (text === undefined) throw new InvalidParameter(`Parameter '${name}' needs a value: ${name}=...`)
  if (kind === 'size') return sizeOf(text, name)
  if (kind === 'number') {
    if (!/^\d+$/.test(text)) throw new InvalidParameter(`Parameter '${name}' expects a number`)
    return Number(text)
  }
  if (kind !== 'text' && !kind.includes(text))
    throw new InvalidParameter(`Parameter '${name}' does not accept value '${text}'; it takes ${kind.join(', ')}`)
  return text
}
