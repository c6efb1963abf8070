// The manifest of a restore point: what was backed up, when, how and why so. It is the commit record: what it names is kept.
//
// Its object is a pack header of kind 3 (pack.ts), whose session gives the key, and one blob of type 4 whose plain bytes are
// canonical JSON. So it is authenticated as everything else is.

import { z } from 'zod'
import { BlobType, HEADER, openBlob, sealBlob, TAG } from './blob.ts'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { Damaged, UnknownFormat } from './faults.ts'
import type { RepositoryKeys } from './keys.ts'
import { decodePackHeader, encodePackHeader, PACK_HEADER, PackKind } from './pack.ts'

const size = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const hexId = z.string().regex(/^[\da-f]{64}$/)

export const readModes = ['full', 'bitmap', 'compare'] as const

const disk = z.object({
  name: z.string().min(1),
  /** Bytes. */
  size,
  chunkSize: z
    .number()
    .int()
    .min(65536)
    .max(4 << 20)
    .refine(value => (value & (value - 1)) === 0, 'must be a power of two'),
  /** The root of its tree (tree-node.ts); null: the disk is all zeroes. */
  root: hexId.nullable(),
  read: z.object({
    /** `full`: everything allocated, nothing to compare with. `compare`: the same, against the parent. `bitmap`: what the bitmap says. */
    mode: z.enum(readModes),
    /** A sentence. */
    why: z.string(),
  }),
  /** Bytes of chunks that are not as in the parent. */
  dirty: size,
  /** Bytes of chunks that the repository did not have, before and after compression. */
  new: size,
  stored: size,
  /** The bitmaps' checkpoint at this instant, where there is one: what a later increment starts from. */
  checkpoint: z.string().optional(),
})
export type DiskManifest = z.infer<typeof disk>

export const manifestSchema = z.object({
  format: z.literal(1),
  repository: z.string(),
  id: z.string(),
  machine: z.string().min(1),
  /** The instant that the disks are of. */
  time: z.iso.datetime(),
  consistency: z.enum(['crash', 'quiesced']),
  /** False: some disk of the machine is missing. */
  complete: z.boolean(),
  /** The key of the restore point it was compared with. */
  parent: z.string().nullable(),
  disks: z.array(disk),
  /** The machine's configuration and the like, by name; blobs of type 3. */
  attachments: z.array(z.object({ name: z.string(), size, id: hexId })),
})
export type Manifest = z.infer<typeof manifestSchema>

export interface ManifestSeal {
  readonly session: string
  readonly counter: number
  readonly time: number
}

export function encodeManifest(value: Manifest, keys: RepositoryKeys, { session, counter, time }: ManifestSeal): Buffer {
  const plain = canonicalJson(value)
  const into = Buffer.alloc(PACK_HEADER + HEADER + plain.length + TAG)
  encodePackHeader({ kind: PackKind.manifest, repository: value.repository, session, time }, into)
  const length = sealBlob(
    plain,
    { type: BlobType.manifest, id: keys.idOf(plain), counter, key: keys.ofSession(session) },
    into.subarray(PACK_HEADER),
  )
  return into.subarray(0, PACK_HEADER + length)
}

/** `what` names the restore point in messages. */
export function decodeManifest(from: Buffer, keys: RepositoryKeys, repository: string, what: string): Manifest {
  const header = decodePackHeader(from)
  if (header.kind !== PackKind.manifest) throw new Damaged(`${what} is no manifest`)
  if (header.repository !== repository) throw new Damaged(`${what} belongs to another repository, ${header.repository}`)
  const plain = openBlob(from.subarray(PACK_HEADER), {
    type: BlobType.manifest,
    key: keys.ofSession(header.session),
    idOf: keys.idOf,
  })
  const { format } = parseJson(plain, z.object({ format: z.number() }), what)
  if (format !== 1) throw new UnknownFormat(`${what} has format ${format}, and this version reads 1: use a newer one`)
  return parseJson(plain, manifestSchema, what)
}

// --- names ------------------------------------------------------------------------------------------------------------------------

export const POINTS = 'points/'

/** The machine's name as a part of a key: only what cannot be one is written as %XX. */
const machinePart = (machine: string) =>
  machine.replaceAll(/[%/\p{Cc}]|^\./gu, character =>
    [...Buffer.from(character)].map(byte => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''),
  )

/** Where the restore points of a machine are. */
export const machinePrefix = (machine: string) => `${POINTS}${machinePart(machine)}/`

/** Sorts by time within the machine: points/<machine>/<time>-<first 8 digits of the id>. */
export function pointKey({ machine, time, id }: Pick<Manifest, 'machine' | 'time' | 'id'>) {
  return `${machinePrefix(machine)}${new Date(time).toISOString().replaceAll(/[-:.]/g, '')}-${id.slice(0, 8)}`
}

/** The instant that a key says, or undefined where it is no restore point's. */
export function timeOfKey(key: string): Date | undefined {
  const [, y, mo, d, h, mi, s, ms] = /^points\/[^/]+\/(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\d{3})Z-[\da-f]{8}$/.exec(key) ?? []
  const time = new Date(`${y}-${mo}-${d}T${h}:${mi}:${s}.${ms}Z`)
  return Number.isNaN(time.getTime()) ? undefined : time
}

/** What stands in place of a restore point that was forgotten, so that no late copy of its manifest brings it back. */
export const tombstone = (time: Date) => canonicalJson({ forgotten: time.toISOString() })

/** To the byte: anything else in place of a manifest is damage, and keeps the collector from taking what it needs. */
export const isTombstone = (body: Uint8Array) =>
  body.length < 100 && /^\{"forgotten":"\d{4}-\d\d-\d\dT[\d:.]+Z"\}$/.test(Buffer.from(body).toString('latin1'))
