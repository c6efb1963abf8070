// The key slots of an encrypted repository: more passphrases for it, others, and fewer. The master key stays the same in all of them, so
// nothing is encrypted anew, and what somebody has copied of a slot still opens the repository.
//
// Whoever takes a slot away must hold a key that opens another one. So the last one stays, and nobody is left with keys that are lost.

import { Busy, InvalidParameter, NotFound } from '../base/errors.ts'
import { find } from './conditional.ts'
import { Damaged, WrongKey } from './faults.ts'
import { unwrapKey, wrapKey } from './keys.ts'
import { findMaster, KEYS, listSlots, putSlot, type InitOptions, type RepositoryFile } from './repository-file.ts'
import type { Target } from './target.ts'

export interface KeyedRepository {
  readonly target: Target
  readonly file: RepositoryFile
  /** One that opens it. */
  readonly passphrase: string | undefined
}

export interface SlotInfo {
  /** keys/<id> */
  readonly key: string
  readonly created: string | undefined
  readonly label: string | undefined
  /** Whether the passphrase opens it; of one that is damaged nobody knows. */
  readonly opens: boolean
  readonly damaged: boolean
}

function need({ target, file, passphrase }: KeyedRepository): string {
  if (!file.encrypted)
    throw new InvalidParameter(`${target.location}: the repository is not encrypted, so it has no keys; a new one can be`)
  if (passphrase === undefined) throw new WrongKey(`${target.location}: the repository is encrypted; its key is needed`)
  return passphrase
}

/** By when they were made. */
export async function slotsOf(repository: KeyedRepository): Promise<SlotInfo[]> {
  const passphrase = need(repository)
  const slots: SlotInfo[] = []
  for await (const { key, read } of listSlots(repository.target)) {
    try {
      const { created, label } = read()
      const opens = await unwrapKey(read(), passphrase, repository.file.id).then(() => true, notOpened)
      slots.push({ key, created, label, opens, damaged: false })
    } catch (error) {
      if (!(error instanceof Damaged)) throw error
      slots.push({ key, created: undefined, label: undefined, opens: false, damaged: true })
    }
  }
  return slots.sort((a, b) => (a.created ?? '').localeCompare(b.created ?? ''))
}

function notOpened(error: unknown) {
  if (error instanceof WrongKey) return false
  throw error
}

/** Another passphrase for the same repository; the key of its slot, which is known to open. */
export async function addPassphrase(
  repository: KeyedRepository,
  added: string,
  options: { cost?: InitOptions['cost']; label?: string } = {},
): Promise<string> {
  const { target, file } = repository
  if (added === '') throw new InvalidParameter('the new key is empty')
  const { key: master } = await findMaster(target, file, need(repository))
  const slot = await putSlot(target, await wrapKey(master, added, file.id, options))
  // What is written is read again before anybody relies on it.
  if ((await findMaster(target, file, added)).key.equals(master)) return slot
  throw new Damaged(`${target.location}: the slot that was written, ${slot}, does not open`)
}

/** Takes a slot away, by its key. */
export async function removeSlot(repository: KeyedRepository, key: string): Promise<void> {
  const { target } = repository
  const slots = await slotsOf(repository)
  const found = slots.find(slot => slot.key === key)
  if (!found) throw new NotFound(`there is no key slot '${key}'; "stillpoint repo key list" shows what there is`)
  if (slots.length === 1) throw new InvalidParameter('this is the last key slot: without it nobody could read the repository')
  const other = slots.find(slot => slot.opens && slot.key !== key)
  if (!other)
    throw new InvalidParameter(
      `${key} is the only slot that the key of the configuration opens: put another one of the repository's keys there first, so that nobody is locked out`,
    )
  const before = await find(target, key)
  await target.delete([key])
  // Two who do this at once, each with the other's slot, would leave none.
  if (await find(target, other.key)) return
  if (before) await target.put(key, before.body)
  throw new Busy(`somebody else has taken ${other.key} away at the same time; ${key} is there again`)
}

/** The passphrase opens it no more, whichever slots it had, and the new one does; by a slot that is there already where an earlier change was cut off. */
export async function changePassphrase(
  repository: KeyedRepository,
  changed: string,
  options: { cost?: InitOptions['cost']; label?: string } = {},
): Promise<{ slot: string; isNew: boolean; removed: string[] }> {
  const { target, file } = repository
  const passphrase = need(repository)
  if (changed.normalize('NFC') === passphrase.normalize('NFC')) throw new InvalidParameter('the new key is the present one')
  await findMaster(target, file, passphrase)
  const old = (await slotsOf(repository)).filter(({ opens }) => opens)
  const label = old.find(slot => slot.label !== undefined)?.label
  const next = { ...repository, passphrase: changed }
  const there = (await slotsOf(next)).find(({ opens }) => opens)?.key
  const slot = there ?? (await addPassphrase(repository, changed, { ...(label !== undefined && { label }), ...options }))
  for (const { key } of old) await removeSlot(next, key)
  return { slot, isNew: there === undefined, removed: old.map(({ key }) => key) }
}

/** By its id, or as much of it as only one has. */
export async function findSlot({ target }: KeyedRepository, name: string): Promise<string> {
  const wanted = name.startsWith(KEYS) ? name : `${KEYS}${name}`
  const found: string[] = []
  for await (const { key } of listSlots(target)) if (key.startsWith(wanted)) found.push(key)
  if (found.length === 1) return found[0]!
  throw new NotFound(
    `${found.length === 0 ? 'no' : 'more than one'} key slot begins with '${name}'; "stillpoint repo key list" shows what there is`,
  )
}
