// A repository of the configuration, for commands that work on it themselves: no daemon is asked.

import { Option } from 'commander'
import { NotFound } from '../base/errors.ts'
import { nearest } from '../base/nearest.ts'
import type { Place } from '../push/open-place.ts'
import type { Repository } from '../repository/repository.ts'
import { DEFAULT_FILE } from './commands/daemon.ts'
import { Misuse } from './failure.ts'

export interface ConfigOption {
  readonly config?: string
}

export const configOption = () => new Option('--config <file>', `the configuration (default: ${DEFAULT_FILE})`)

export const repositoryArgument = { '<repository>': 'its name in the configuration' }

/** Its store, whether or not there is a repository yet. @throws NotFound where the configuration has no such name */
export async function openPlace(name: string, { config = DEFAULT_FILE }: ConfigOption): Promise<Place> {
  const { loadSettings } = await import('../settings/load.ts')
  const { repositories } = await loadSettings(config)
  const settings = repositories[name]
  if (!settings) throw new NotFound(`${config} has no repository '${name}'${known(name, Object.keys(repositories))}`)
  const [{ openPlace: open }, { createLog }] = await Promise.all([import('../push/open-place.ts'), import('../base/log.ts')])
  return open(name, settings, createLog('warn'))
}

const known = (name: string, names: readonly string[]) => {
  const meant = nearest(name, names)
  if (meant) return `; did you mean '${meant}'?`
  if (names.length === 0) return '; it has none: "repositories" says where they are'
  const isPoint = name.includes('/') ? '; a restore point comes behind its repository' : ''
  return `; there are ${names.join(', ')}${isPoint}`
}

/** Works on the repository, and closes its store afterwards. */
export async function withRepository<T>(name: string, options: ConfigOption, work: (repository: Repository) => Promise<T>) {
  await using place = await openPlace(name, options)
  const { openRepository } = await import('../push/open-place.ts')
  return await work(await openRepository(place))
}

/** As a restore point is called among people: without what all of them begin with. */
export const shortPoint = (key: string) => key.replace(/^points\//, '')
export const pointKey = (name: string) => (name.startsWith('points/') ? name : `points/${name}`)

/** A whole number, or undefined where it was not given. */
export const count = (option: string) => (text: string) => {
  if (!/^\d{1,6}$/.test(text)) throw new Misuse(`--${option} must be a whole number, not '${text}'`)
  return Number(text)
}
