// Deleting: many keys with one request where the store does that, else one by one.

import { hash, createHash } from 'node:crypto'
import { IoError, NotSupported } from '../../src/base/errors.ts'
import { Denied, Unavailable } from '../../src/push/target.ts'
import type { S3Client } from './client.ts'
import { faultOf, isTransient } from './faults.ts'
import { childrenOf, escapeXml, parseXml, textOf } from './xml.ts'

const MAX_BATCH = 1000
const ROUNDS = 5
/** What no reader of XML takes for anything else. */
const isPlain = (key: string) => /^[\w./=+-]+$/.test(key)

/** All of them, without looking at any. */
class DeniedBatch extends Denied {}

/** `batches.work` becomes false when the store turns out to have no such request. */
export async function deleteAll(client: S3Client, keys: readonly string[], batches: { work: boolean }, signal?: AbortSignal) {
  let waiting = keys.filter(isPlain)
  const single = keys.filter(key => !isPlain(key))
  if (waiting.length < 3) single.push(...waiting.splice(0))
  for (let round = 1; waiting.length > 0 && batches.work; round++) {
    const left: string[] = []
    for (let at = 0; at < waiting.length && batches.work; at += MAX_BATCH) {
      const batch = waiting.slice(at, at + MAX_BATCH)
      try {
        left.push(...(await deleteBatch(client, batch, signal)))
      } catch (error) {
        // Some stores (Ceph) want a permission for this that they do not want for the objects one by one.
        if (!(error instanceof NotSupported || error instanceof DeniedBatch)) throw error
        batches.work = false
        left.push(...waiting.slice(at))
      }
    }
    waiting = left
    if (round === ROUNDS && waiting.length > 0 && batches.work)
      throw new Unavailable(`${client.place.endpoint}: the store did not delete '${waiting[0]}' and ${waiting.length - 1} more`)
  }
  single.push(...waiting)
  for (let at = 0; at < single.length; at += MAX_BATCH) {
    const outcomes = await Promise.allSettled(single.slice(at, at + MAX_BATCH).map(key => deleteOne(client, key, signal)))
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
  }
}

async function deleteOne(client: S3Client, key: string, signal?: AbortSignal) {
  const what = `delete '${key}'`
  const reply = await client.call({ method: 'DELETE', what, key, signal })
  if (reply.refusal && reply.refusal.code !== 'NoSuchKey') throw client.fault(reply, what)
}

/** The keys that the store wants to be asked for again. */
async function deleteBatch(client: S3Client, keys: readonly string[], signal?: AbortSignal): Promise<string[]> {
  const objects = keys.map(key => `<Object><Key>${escapeXml(key)}</Key></Object>`).join('')
  const body = Buffer.from(`<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>${objects}</Delete>`)
  const headers = {
    'content-md5': createHash('md5').update(body).digest('base64'),
    'content-type': 'application/xml',
  }
  const what = `delete ${keys.length} objects, '${keys[0]}' among them`
  const sha256 = hash('sha256', body)
  const reply = await client.call({ method: 'POST', what, query: { delete: '' }, headers, body, sha256, signal })
  if (reply.refusal?.status === 403) throw new DeniedBatch(client.fault(reply, what).message)
  if (reply.refusal) throw client.fault(reply, what)
  const result = parseXml(reply.body.toString())
  if (result.name !== 'DeleteResult')
    throw new IoError(`${client.place.endpoint}: could not ${what}: it replies with <${result.name}>`)
  const again: string[] = []
  for (const error of childrenOf(result, 'Error')) {
    const key = textOf(error, 'Key') ?? ''
    const refusal = { status: 200, code: textOf(error, 'Code') ?? '', message: textOf(error, 'Message') ?? '' }
    if (refusal.code === 'NoSuchKey') continue
    if (!isTransient(refusal) || !keys.includes(key)) throw faultOf(refusal, `delete '${key}'`, client.place)
    again.push(key)
  }
  return again
}
