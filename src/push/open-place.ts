// Where a repository of the configuration is: its store, opened, and its key.

import { BadSettings, NotFound } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { readSecret } from '../base/secret-reference.ts'
import { Repository } from '../repository/repository.ts'
import type { Target } from '../repository/target.ts'
import type { RepositorySettings } from '../settings/settings.ts'
import { openTarget } from './target.ts'

export interface Place extends AsyncDisposable {
  readonly target: Target
  readonly passphrase: string | undefined
  readonly warn?: (message: string) => void
}

/** Whether or not there is a repository yet. The signal ends the opening: a store may not answer. */
export async function openPlace(
  name: string,
  { target: settings, key }: RepositorySettings,
  log: Log,
  signal?: AbortSignal,
): Promise<Place> {
  const passphrase = key === undefined ? undefined : await readSecret(key, `repositories.${name}.encryption.key`)
  const where = `repositories.${name}`
  let target: Target
  try {
    target = await openTarget(settings, { log, signal }, where)
  } catch (error) {
    // What the plugin says does not know how it is called here.
    if (error instanceof BadSettings && !error.message.includes(where)) error.message = `${where}: ${error.message}`
    throw error
  }
  const warn = (message: string) => log.warn(message, { repository: name })
  return { target, passphrase, warn, [Symbol.asyncDispose]: () => target[Symbol.asyncDispose]() }
}

/** @throws NotFound */
export function settingsOf(name: string, repositories: Readonly<Record<string, RepositorySettings>>): RepositorySettings {
  if (Object.hasOwn(repositories, name)) return repositories[name]!
  const known = Object.keys(repositories).map(one => `'${one}'`)
  throw new NotFound(`there is no repository '${name}'; the configuration has ${known.join(', ') || 'none'}`)
}

export const openRepository = ({ target, passphrase, warn }: Place, signal?: AbortSignal) =>
  Repository.open(target, { passphrase, ...(warn && { warn }), ...(signal && { signal }) })
