// repository.json, which says what a repository is, and the key slots beside it.

import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import { InvalidParameter } from '../base/errors.ts'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { find, putIf } from './conditional.ts'
import { Damaged, NoRepository, UnknownFormat, WrongKey } from './faults.ts'
import { GC_STATE, initialState } from './gc-state.ts'
import { newMasterKey, RepositoryKeys, slotSchema, unwrapKey, wrapKey, type KeySlot } from './keys.ts'
import { probe } from './probe.ts'
import { PreconditionFailed, type Target } from './target.ts'
import { isUuid } from './uuid.ts'

export const REPOSITORY = 'repository.json'
export const KEYS = 'keys/'
const FORMAT = 1

const schema = z.object({
  format: z.literal(FORMAT),
  id: z.string().refine(isUuid),
  /** What a reader must understand; this version knows nothing that it could demand. */
  requires: z.array(z.string()),
  encrypted: z.boolean(),
  /** Whether the store can compare and swap. Without it the repository has one writer. */
  cas: z.boolean(),
  /** Bytes; the default for new disks. */
  chunkSize: z.number().int(),
  created: z.iso.datetime(),
})
export type RepositoryFile = z.infer<typeof schema>

export const CHUNK_SIZES = [16, 17, 18, 19, 20, 21, 22].map(bits => 2 ** bits)
export const DEFAULT_CHUNK_SIZE = 2 ** 18

export interface InitOptions {
  /** With it the repository is encrypted. */
  readonly passphrase?: string | undefined
  readonly chunkSize?: number
  /** Of scrypt; tests make it cheap. */
  readonly cost?: { n: number; r: number; p: number }
  readonly signal?: AbortSignal
}

/** Makes a repository where there is none. */
export async function initRepository(target: Target, options: InitOptions = {}): Promise<RepositoryFile> {
  const { passphrase, chunkSize = DEFAULT_CHUNK_SIZE, cost, signal } = options
  if (!CHUNK_SIZES.includes(chunkSize)) throw new InvalidParameter('the chunk size must be a power of two from 64 KiB to 4 MiB')
  if (passphrase === '') throw new InvalidParameter('the key is empty')
  const exists = new InvalidParameter(`${target.location}: there is a repository already`)
  if (await find(target, REPOSITORY, signal)) throw exists
  const { cas } = await probe(target, signal)
  const id = randomUUID()
  const file = {
    format: FORMAT as typeof FORMAT,
    id,
    requires: [],
    encrypted: passphrase !== undefined,
    cas,
    chunkSize,
    created: new Date().toISOString(),
  } satisfies RepositoryFile
  // The file that makes it a repository comes last, so a crash leaves none, and of two that do this at once one wins.
  if (passphrase !== undefined) await putSlot(target, await wrapKey(newMasterKey(), passphrase, id, { cost }))
  await putIf(target, GC_STATE, canonicalJson(initialState), { ifAbsent: true }, { cas, signal })
  try {
    await putIf(target, REPOSITORY, canonicalJson(file), { ifAbsent: true }, { cas, signal })
  } catch (error) {
    throw error instanceof PreconditionFailed ? exists : error
  }
  return file
}

export async function readRepositoryFile(target: Target, signal?: AbortSignal): Promise<RepositoryFile> {
  const found = await find(target, REPOSITORY, signal)
  if (!found)
    throw new NoRepository(
      `${target.location}: there is no repository; make one with "stillpoint repo init", or mend the address`,
    )
  const { format, requires } = parseJson(
    found.body,
    z.object({ format: z.number(), requires: z.array(z.string()).default([]) }),
    `${target.location}: ${REPOSITORY}`,
  )
  if (format !== FORMAT)
    throw new UnknownFormat(
      `${target.location}: the repository has format ${format}, and this version reads ${FORMAT}: use a newer one`,
    )
  if (requires.length > 0)
    throw new UnknownFormat(`${target.location}: the repository needs a version that knows ${requires.join(', ')}`)
  return parseJson(found.body, schema, `${target.location}: ${REPOSITORY}`)
}

/** The keys of the repository, by whichever slot the passphrase opens. */
export async function openKeys(target: Target, file: RepositoryFile, passphrase: string | undefined, signal?: AbortSignal) {
  if (!file.encrypted) {
    if (passphrase !== undefined)
      throw new WrongKey(
        `${target.location}: a key is given, and the repository is not encrypted; leave the key out, or look whether this is the right place`,
      )
    return new RepositoryKeys(file.id)
  }
  if (passphrase === undefined) throw new WrongKey(`${target.location}: the repository is encrypted; its key is needed`)
  const master = await findMaster(target, file, passphrase, signal)
  return new RepositoryKeys(file.id, master.key)
}

/** The master key, and the slot that the passphrase opens. One that is damaged does no harm as long as another one opens. */
export async function findMaster(target: Target, { id }: RepositoryFile, passphrase: string, signal?: AbortSignal) {
  let damaged: Damaged | undefined
  let slots = 0
  for await (const { key: name, read } of listSlots(target, signal)) {
    slots++
    try {
      return { slot: name, key: await unwrapKey(read(), passphrase, id) }
    } catch (error) {
      if (error instanceof Damaged) damaged = error
      else if (!(error instanceof WrongKey)) throw error
    }
  }
  if (slots === 0)
    throw new Damaged(
      `${target.location}: the repository is encrypted, and its key slots (${KEYS}) are gone; nobody can read it until one is back from a copy`,
    )
  if (damaged)
    throw new Damaged(
      `${target.location}: the key opens no slot, and one is damaged: ${damaged.message}; try another key of the repository, or bring that object back from a copy`,
      { cause: damaged },
    )
  throw new WrongKey(`${target.location}: the key does not open this repository; is it that of another one?`)
}

/** Every slot; `read` throws Damaged where it is none. */
export async function* listSlots(target: Target, signal?: AbortSignal): AsyncGenerator<{ key: string; read: () => KeySlot }> {
  for await (const { key } of target.list(KEYS, { signal })) {
    const found = await find(target, key, signal)
    if (found) yield { key, read: () => parseJson(found.body, slotSchema, key) }
  }
}

export async function putSlot(target: Target, slot: KeySlot) {
  const key = `${KEYS}${randomUUID()}`
  await target.put(key, canonicalJson(slot))
  return key
}
