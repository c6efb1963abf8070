// The files of a configuration as one: the main one, and what is dropped in beside it, each over those before.
//
// Maps are merged key by key; anything else, lists too, replaces what an earlier file says.

import { isDeepStrictEqual } from 'node:util'
import type { Path, Place, Problem, YamlSource } from './yaml-source.ts'

export class Sources {
  constructor(readonly files: readonly YamlSource[]) {}

  /** What makes one of them no YAML, or ambiguous YAML. */
  get problems(): Problem[] {
    return this.files.flatMap(file => file.problems)
  }

  get isEmpty() {
    return this.files.every(file => file.isEmpty)
  }

  /** @throws ReferenceError where aliases make a small file a huge one */
  get data(): unknown {
    const [first, ...rest] = this.files.filter(file => !file.isEmpty).map(file => file.data)
    return rest.reduce(merge, first)
  }

  /** Where a value begins, in the file that counts; where there is none, where the nearest value around it does. */
  placeOf(path: Path): Place | undefined {
    const source = this.#fileOf(path)
    const offset = source.offsetOf(path)
    return offset === undefined ? undefined : { source, offset }
  }

  /** Where a key itself begins. */
  keyPlaceOf(path: Path): Place | undefined {
    const source = this.#fileOf(path)
    const offset = source.keyOffsetOf(path)
    return offset === undefined ? undefined : { source, offset }
  }

  has(path: Path): boolean {
    return this.#fileOf(path).has(path)
  }

  kindOf(path: Path): string {
    return this.#fileOf(path).kindOf(path)
  }

  /** The last of those that say most of it. */
  #fileOf(path: Path): YamlSource {
    return this.files.reduce((best, file) => (file.depthOf(path) >= best.depthOf(path) ? file : best))
  }
}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function merge(below: unknown, above: unknown): unknown {
  if (!isMap(below) || !isMap(above)) return above
  const merged = new Map(Object.entries(below))
  for (const [key, value] of Object.entries(above)) merged.set(key, merged.has(key) ? merge(merged.get(key), value) : value)
  return Object.fromEntries(merged)
}

/** The paths at which two configurations differ, as deep as both have maps. */
export function differences(before: unknown, after: unknown, path: Path = []): Path[] {
  if (isDeepStrictEqual(before, after)) return []
  if (!isMap(before) || !isMap(after)) return [path]
  const keys = new Set([...Object.keys(before), ...Object.keys(after)])
  return [...keys].flatMap(key => differences(before[key], after[key], [...path, key]))
}
