// What a store does with conditions, found out by trying each of them on an object of its own: some refuse them, some ignore them and
// say 200, and some know an object's tag only without the quotes that HTTP puts around it.

import { createHash, randomUUID } from 'node:crypto'
import { Unavailable } from '../../src/push/target.ts'
import type { Reply, S3Client } from './client.ts'

export interface Conditions {
  /** If-None-Match: * is kept. */
  readonly create: boolean
  /** If-Match is kept, with the tag in this form. */
  readonly swap: 'quoted' | 'bare' | undefined
  /** What is missing, and how that showed. */
  readonly why?: string | undefined
}

/** A network that delivers twice makes a store look as if it could not: only what shows so often is believed. */
const UNSURE = 5
/** With a lost reply an attempt tells nothing. */
const LOST = 30
const ABSENT_TAG = '0123456789abcdef0123456789abcdef'

export const ifAbsent = { 'if-none-match': '*' }
export const ifMatch = (tag: string, form: 'quoted' | 'bare') => ({ 'if-match': form === 'quoted' ? `"${tag}"` : tag })
export const tagOf = ({ headers }: Reply) => String(headers['etag'] ?? '').replaceAll(/^(?:W\/)?"|"$/g, '')

/** A refusal that says that the condition did not hold. Amazon's says NoSuchKey where there is nothing to compare with. */
export const isUnmet = ({ refusal }: Reply) => refusal?.status === 412 || refusal?.code === 'NoSuchKey'

/** Throws what keeps it from finding out: no permission to write, no answer. */
export async function probeConditions(client: S3Client, prefix: string, signal?: AbortSignal): Promise<Conditions> {
  for (let unsure = 0, lost = 0; ;) {
    const found = await tryConditions(client, `${prefix}probe/${randomUUID()}`, signal)
    if (found === 'lost') {
      if (++lost === LOST)
        throw new Unavailable(
          `${client.place.endpoint}: replies are lost again and again; what the store can do is not known yet`,
        )
    } else if (!found.unsure || ++unsure === UNSURE) return { create: found.create, swap: found.swap, why: found.why }
  }
}

/** `unsure`: it may have been the network. */
async function tryConditions(
  client: S3Client,
  key: string,
  signal?: AbortSignal,
): Promise<'lost' | (Conditions & { unsure?: boolean })> {
  const what = `write '${key}'`
  const put = async (text: string, headers: Record<string, string>) => {
    const body = Buffer.from(text)
    const reply = await client.call({ method: 'PUT', what, key, body, sha256: hash(body), headers, signal })
    if (reply.refusal && !isUnmet(reply) && !isUnable(reply)) throw client.fault(reply, what)
    return reply
  }
  await using _probe = {
    async [Symbol.asyncDispose]() {
      const what = `delete '${key}'`
      const gone = await client.call({ method: 'DELETE', what, key })
      // Who may not delete leaves it: it is small.
      if (gone.refusal && gone.status !== 404 && gone.status !== 403) throw client.fault(gone, what)
    },
  }
  const nothing = { create: false, swap: undefined }
  const created = await put('first', ifAbsent)
  if (created.uncertain) return 'lost'
  // That the new key is there already means that the request came twice.
  if (created.refusal) return { ...nothing, why: `it answers ${told(created)} to If-None-Match`, unsure: isUnmet(created) }
  const again = await put('second', ifAbsent)
  if (again.uncertain) return 'lost'
  if (!again.refusal) return { ...nothing, why: 'it accepts If-None-Match and ignores it' }
  const create = isUnmet(again)
  const wrong = await put('third', ifMatch(ABSENT_TAG, 'quoted'))
  if (wrong.uncertain) return 'lost'
  if (!wrong.refusal) return { create, swap: undefined, why: 'it accepts If-Match and ignores it' }
  if (!isUnmet(wrong)) return { create, swap: undefined, why: `it answers ${told(wrong)} to If-Match` }
  for (const form of ['quoted', 'bare'] as const) {
    const swapped = await put('fourth', ifMatch(tagOf(created), form))
    if (swapped.uncertain) return 'lost'
    if (swapped.refusal) continue
    const stale = await put('fifth', ifMatch(tagOf(created), form))
    if (stale.uncertain) return 'lost'
    if (isUnmet(stale)) return { create, swap: form }
    return { create, swap: undefined, why: 'it accepts an ETag in If-Match that the object no longer has' }
  }
  return { create, swap: undefined, why: 'it does not know its own ETag in If-Match', unsure: true }
}

const hash = (body: Buffer) => createHash('sha256').update(body).digest('hex')
const told = ({ refusal }: Reply) => `${refusal!.status} ${refusal!.code}`

/** It does not know such a header, or wants none. */
const isUnable = ({ refusal }: Reply) =>
  refusal?.status === 501 ||
  refusal?.status === 405 ||
  (refusal?.status === 400 && /Invalid(Argument|Request)/.test(refusal.code))
