// Who wrote an object, kept in its metadata: the name of the put, and those of the versions that it and the puts before it replaced,
// each with its tag. Whoever does not know whether a put of its own was done, and finds another object there, can tell by this:
//
// - its own name is among them: it was done, and has been replaced since;
// - the version that it wanted to replace is among them, and its own name is not: another put was first, so it was not done and never
//   will be;
// - neither: too much has happened since, or somebody else's program was at work. Nobody knows.

import { randomBytes } from 'node:crypto'

export const PUT_HEADER = 'x-amz-meta-stillpoint-put'
/** With these a record has about 800 bytes; a store keeps 2 KiB of metadata. */
const MAX_REPLACED = 15
const MAX_TAG = 64

export interface PutRecord {
  readonly id: string
  /** Newest first; a version of unknown origin has an empty name. */
  readonly replaced: readonly { readonly id: string; readonly tag: string }[]
}

/** A put's record; `before` is that of the version it replaces, where it replaces a certain one. */
export function newRecord(before?: { readonly tag: string; readonly record: PutRecord | undefined }): PutRecord {
  const id = randomBytes(9).toString('base64url')
  if (!before || before.tag.length > MAX_TAG) return { id, replaced: [] }
  const { tag, record } = before
  return { id, replaced: [{ id: record?.id ?? '', tag }, ...(record?.replaced ?? [])].slice(0, MAX_REPLACED) }
}

export const encodeRecord = ({ id, replaced }: PutRecord) =>
  [id, ...replaced.map(({ id, tag }) => `${id}=${Buffer.from(tag).toString('base64url')}`)].join(',')

/** Undefined where there is none, or what somebody else wrote there. */
export function decodeRecord(header: unknown): PutRecord | undefined {
  if (typeof header !== 'string') return undefined
  const [, id, rest = ''] = /^([\w-]+)((?:,[\w-]*=[\w-]+)*)$/.exec(header) ?? []
  if (id === undefined) return undefined
  const replaced = rest
    .split(',')
    .slice(1)
    .map(entry => {
      const equals = entry.indexOf('=')
      return { id: entry.slice(0, equals), tag: Buffer.from(entry.slice(equals + 1), 'base64url').toString() }
    })
  return { id, replaced }
}

/** What became of the put of this name, that was to replace the version with this tag (or none): as the object there now tells. */
export function fateOf(
  { id, ifMatch }: { readonly id: string; readonly ifMatch: string | undefined },
  there: { readonly tag: string; readonly record: PutRecord | undefined },
): { readonly done: true; readonly tag: string } | { readonly done: false } | undefined {
  const { record, tag } = there
  if (record?.id === id) return { done: true, tag }
  const replaced = record?.replaced.find(entry => entry.id === id)
  if (replaced) return { done: true, tag: replaced.tag }
  // It was to be replaced, and is still there.
  if (ifMatch === tag) return { done: false }
  if (ifMatch !== undefined) return record?.replaced.some(entry => entry.tag === ifMatch) ? { done: false } : undefined
  // Somebody else has created it: of those who want to be first only one is.
  return record && record.replaced.length < MAX_REPLACED ? { done: false } : undefined
}
