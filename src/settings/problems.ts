// What the schema objects to, as sentences at a place in the file.

import type { z } from 'zod'
import { BadSettings } from '../base/errors.ts'
import { nearest } from '../base/nearest.ts'
import { jsonSchema } from './schema.ts'
import type { Sources } from './sources.ts'
import { nameOf, type Path, type Place, type Problem } from './yaml-source.ts'

export type Issue = z.core.$ZodIssue

/** As many as one cares to read at once; the next run shows the rest. */
const MAX_PROBLEMS = 20

/** `around` is where in the configuration that stands which was looked at, and `keysAt` what may be in a map of it. */
export function problemsOf(
  source: Sources,
  issues: readonly Issue[],
  { around = [], keysAt = keysOfSchema }: { around?: Path; keysAt?: (path: Path) => readonly string[] } = {},
): Problem[] {
  return issues.flatMap(issue => {
    const path = [...around, ...issue.path]
    if (issue.code === 'unrecognized_keys') {
      const known = keysAt(issue.path)
      return issue.keys.map(key => ({ place: source.keyPlaceOf([...path, key]), sentence: unknownKey(path, key, known) }))
    }
    if (issue.code === 'invalid_key') {
      return { place: source.keyPlaceOf(path), sentence: `${quoted(path)}: ${issue.issues[0]?.message ?? issue.message}` }
    }
    return { place: source.placeOf(path), sentence: sentenceOf(source, path, issue) }
  })
}

/** @throws BadSettings where there are any: a line for each, in the order of the files */
export function refuse(problems: readonly Problem[]) {
  if (problems.length === 0) return
  const seen = new Set<string>()
  const lines = problems
    .map(({ place, sentence }) => ({ place, sentence }))
    .toSorted((a, b) => orderOf(a.place, b.place))
    // One for each place: what else is wrong there often follows from it.
    .filter(({ place }) => {
      const key = place ? `${place.source.file}:${place.offset}` : ''
      return !seen.has(key) && seen.add(key)
    })
    .slice(0, MAX_PROBLEMS)
    .map(({ place, sentence }) => {
      if (!place) return sentence
      const { line, column } = place.source.positionOf(place.offset)
      return `${place.source.file}:${line}:${column}: ${sentence}`
    })
  throw new BadSettings(lines.join('\n'))
}

/** By file, and in a file from the top. */
const orderOf = (a: Place | undefined, b: Place | undefined) =>
  a && b && a.source === b.source ? a.offset - b.offset : (a?.source.file ?? '') < (b?.source.file ?? '') ? -1 : 1

function sentenceOf(source: Sources, path: Path, { code, message, ...issue }: Issue): string {
  const where = path.length > 0 ? `${quoted(path)} ` : 'the file '
  if (code !== 'invalid_type' && code !== 'invalid_value' && code !== 'invalid_union') return `${where}${message}`
  const present = path.length === 0 || source.has(path)
  if (!present) return `${quoted(path.slice(0, -1))} lacks "${String(path.at(-1))}"`
  const kind = source.kindOf(path)
  if (kind === 'empty') return `${where}is empty: give it a value, or leave the key out`
  const wanted =
    code === 'invalid_type' && 'expected' in issue
      ? `must be ${wantedNames[issue.expected as string] ?? String(issue.expected)}`
      : message
  return `${where}${wanted}, and is ${kind}${adviceOf(wanted, kind, path)}`
}

/** How what was meant is written, where that is plain. */
function adviceOf(wanted: string, kind: string, path: Path) {
  if (wanted === 'must be text' && kind.startsWith('the number ')) return ': write it in quotes'
  if (wanted === 'must be a map' && path.length > 0) {
    const keys = keysOfSchema(path)
    if (keys.length > 0) return `; its keys are ${keys.map(name => `"${name}"`).join(', ')}`
    return schemaAt(path)?.additionalProperties ? ': each needs a name and ":" before it' : ''
  }
  if (wanted !== 'must be a list') return ''
  return kind === 'a map' ? ': write "- " before it' : ': write [ ] around it'
}

const wantedNames: Record<string, string> = {
  string: 'text',
  object: 'a map',
  record: 'a map',
  array: 'a list',
  boolean: 'true or false',
  number: 'a number',
  int: 'a whole number',
}

function unknownKey(path: Path, key: string, known: readonly string[]): string {
  const meant = nearest(key, known)
  const where = path.length > 0 ? ` in ${quoted(path)}` : ''
  return `unknown key "${key}"${where}; ${meant ? `did you mean "${meant}"?` : `there are ${known.map(name => `"${name}"`).join(', ')}`}`
}

const quoted = (path: Path) => `"${nameOf(path)}"`

interface Schema {
  properties?: Record<string, Schema>
  additionalProperties?: Schema | false
  items?: Schema
}

const step = (schema: Schema | undefined, key: PropertyKey) =>
  typeof key === 'number' ? schema?.items : (schema?.properties?.[String(key)] ?? (schema?.additionalProperties || undefined))

const schemaAt = (path: Path) => path.reduce<Schema | undefined>(step, jsonSchema() as Schema)

const keysOfSchema = (path: Path) => Object.keys(schemaAt(path)?.properties ?? {})
