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

export * from '../repository/target.ts'

export interface TargetContext {
  readonly log: Log
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

/** What the plugin makes of the options, without connecting to anything. @throws BadSettings */
export async function readTarget({ plugin: name, ...options }: TargetSettings, where: string) {
  const plugin = await loadPlugin(name, where)
  const parsed = plugin.options.safeParse(options)
  if (parsed.success) return { plugin, options: parsed.data }
  const known = Object.keys((plugin.options as { shape?: object }).shape ?? {})
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
export async function loadPlugin(name: string, where: string): Promise<TargetPlugin> {
  const module = await importPlugin(name, where)
  const plugin = (module as { plugin?: unknown } | null)?.plugin
  if (isPlugin(plugin)) return plugin
  throw new BadSettings(
    `${where}: '${name}' is no push target: it exports no plugin with a name, options and open (src/push/target.ts)`,
  )
}

async function importPlugin(name: string, where: string): Promise<unknown> {
  try {
    return await import(specifierOf(name))
  } catch (error) {
    throw new BadSettings(
      `${where}: the plugin '${name}' does not load: ${messageOf(error)}. Ours are ${[...OURS].join(' and ')}; others are npm packages.`,
      { cause: error },
    )
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
