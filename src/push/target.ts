// What a push target is to those who write one: the contract, and how a plugin offers it. And the loader, which treats ours and other
// people's alike.
//
// A plugin is an npm package, or a folder of plugins/, whose main module exports
//     export const plugin = { name, options, open }
// `name` is what the configuration's `plugin:` says; `options` is a zod schema for the keys beside it; `open` gets what it returned.

import { isAbsolute } from 'node:path'
import { pathToFileURL } from 'node:url'
import { z } from 'zod'
import { BadSettings, messageOf } from '../base/errors.ts'
import { nearest } from '../base/nearest.ts'
import type { Log } from '../base/log.ts'
import type { Target } from '../repository/target.ts'
import { refuseOptions, refusePlugin } from '../settings/plugin-options.ts'

export * from '../repository/target.ts'

export interface TargetContext {
  readonly log: Log
  /** Ends the opening, and nothing later. */
  readonly signal?: AbortSignal | undefined
}

export interface TargetPlugin<Options = never> {
  readonly name: string
  readonly options: z.ZodType<Options>
  /** Connects, or checks that it could. Creates nothing but the empty place, where the options ask for that. */
  open(options: Options, context: TargetContext): Promise<Target>
}

/** What the configuration says of a repository's store: the plugin, and the plugin's own options. */
export interface TargetSettings {
  readonly plugin: string
  readonly [option: string]: unknown
}

const OURS = new Set(['file', 's3'])

/** `where` is how messages name the settings: "repositories.offsite". */
export async function openTarget(settings: TargetSettings, context: TargetContext, where = 'the repository'): Promise<Target> {
  const { plugin, options } = await readTarget(settings, where)
  return plugin.open(options, context)
}

/** What all the repositories' plugins object to, where each is configured. @throws BadSettings */
export async function readTargets(repositories: Readonly<Record<string, { readonly target: TargetSettings }>>) {
  const problems: string[] = []
  for (const [name, { target }] of Object.entries(repositories)) {
    try {
      await readTarget(target, `repositories.${name}`)
    } catch (error) {
      if (!(error instanceof BadSettings)) throw error
      problems.push(error.message)
    }
  }
  if (problems.length > 0) throw new BadSettings(problems.join('\n'))
}

/** What the plugin makes of the options, without connecting to anything. @throws BadSettings */
export async function readTarget(settings: TargetSettings, where: string) {
  const { plugin: name, ...options } = settings
  const plugin = await loadPlugin(name, where, settings)
  const parsed = plugin.options.safeParse(options)
  if (parsed.success) return { plugin, options: parsed.data }
  const known = Object.keys((plugin.options as { shape?: object }).shape ?? {})
  refuseOptions(settings, parsed.error.issues, [...known, 'encryption'])
  const problems = parsed.error.issues.map(({ path, message, code, ...issue }) => {
    if (code === 'unrecognized_keys' && 'keys' in issue)
      return issue.keys.map(key => `unknown key "${key}"${meant(key, known)}`).join(', ')
    if (path.length === 0) return message
    // What a schema says of a key that is not there.
    const isMissing = code === 'invalid_type' && !Object.hasOwn(options, path[0] ?? '')
    return isMissing
      ? `it lacks "${path.join('.')}"`
      : `${path.join('.')}: ${'expected' in issue ? message.replace(/^Invalid input: /, '') : message}`
  })
  throw new BadSettings(`${where}: the options of plugin '${name}' are wrong: ${problems.join('; ')}`)
}

function meant(key: string, known: readonly string[]) {
  const name = nearest(key, known)
  return name === undefined ? '' : `; did you mean "${name}"?`
}

/** A name of ours, the name of a package that Node finds from here, or an absolute path. */
export async function loadPlugin(
  name: string,
  where: string,
  settings: TargetSettings = { plugin: name },
): Promise<TargetPlugin> {
  const module = await importPlugin(name, where, settings)
  const plugin = (module as { plugin?: unknown } | null)?.plugin
  if (isPlugin(plugin)) return plugin
  const why = `'${name}' is no push target: it exports no plugin with a name, options and open (src/push/target.ts)`
  refusePlugin(settings, why)
  throw new BadSettings(`${where}: ${why}`)
}

async function importPlugin(name: string, where: string, settings: TargetSettings): Promise<unknown> {
  try {
    return await import(specifierOf(name))
  } catch (error) {
    // Behind that is where Node has looked from.
    const why = `'${name}' does not load: ${messageOf(error).split(/\n| imported from /)[0]}`
    const like = nearest(name, [...OURS])
    const advice = like === undefined ? `ours are ${[...OURS].join(' and ')}; others are npm packages` : `did you mean "${like}"?`
    refusePlugin(settings, `${why}; ${advice}`)
    throw new BadSettings(`${where}: ${why}; ${advice}`, { cause: error })
  }
}

function specifierOf(name: string) {
  if (!OURS.has(name)) return isAbsolute(name) ? pathToFileURL(name).href : name
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new URL(`../../plugins/${name}/index.${extension}`, import.meta.url).href
}

function isPlugin(value: unknown): value is TargetPlugin {
  if (typeof value !== 'object' || value === null) return false
  const { name, options, open } = value as Partial<TargetPlugin>
  return typeof name === 'string' && typeof options?.safeParse === 'function' && typeof open === 'function'
}
