// The options of plugins: what is right among them only the plugin knows, and where they stand only the files of the configuration.

import { problemsOf, refuse, type Issue } from './problems.ts'
import type { Sources } from './sources.ts'
import { nameOf, type Path } from './yaml-source.ts'

export interface Origin {
  readonly source: Sources
  readonly path: Path
}

const origins = new WeakMap<object, Origin>()

/** For options that were read from files. */
export const keepOrigin = (options: object, origin: Origin) => void origins.set(options, origin)

/** What a plugin objects to, at its place. Returns where the options come from no file. @throws BadSettings */
export function refuseOptions(options: object, issues: readonly Issue[], known: readonly string[]) {
  const origin = origins.get(options)
  if (!origin) return
  const keysAt = (path: Path) => (path.length === 0 ? known : [])
  refuse(problemsOf(origin.source, issues, { around: origin.path, keysAt }))
}

/** As refuseOptions, where the plugin itself is not to be had. @throws BadSettings */
export function refusePlugin(options: object, why: string) {
  const origin = origins.get(options)
  if (!origin) return
  const path = [...origin.path, 'plugin']
  refuse([{ place: origin.source.placeOf(path), sentence: `"${nameOf(path)}" ${why}` }])
}
