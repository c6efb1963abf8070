// S3 targets for tests: options for a store, a bucket in it, and a target on it.

import { createLog } from '../../src/base/log.ts'
import { S3Client, type Surroundings } from '../../plugins/s3/client.ts'
import { s3Options } from '../../plugins/s3/options.ts'
import { S3Target } from '../../plugins/s3/s3-target.ts'
import { ACCESS_KEY, SECRET_KEY } from './ceph.ts'

process.env['STILLPOINT_TEST_SECRET'] = SECRET_KEY

export const silent = createLog('silent')

/** What the configuration would say; `more` may replace any of it. */
export const settingsFor = (endpoint: string, bucket: string, more: Record<string, unknown> = {}) => ({
  endpoint,
  bucket,
  'access-key': ACCESS_KEY,
  'secret-key': 'env:STILLPOINT_TEST_SECRET',
  ...more,
})

export const optionsFor = (...args: Parameters<typeof settingsFor>) => s3Options.parse(settingsFor(...args))

export const openS3 = (endpoint: string, bucket: string, more: Record<string, unknown> = {}, surroundings?: Surroundings) =>
  S3Target.open(optionsFor(endpoint, bucket, more), silent, surroundings)

export async function makeBucket(endpoint: string, bucket: string, headers: Record<string, string> = {}) {
  await using client = await S3Client.create(optionsFor(endpoint, bucket), silent)
  const reply = await client.call({ method: 'PUT', what: 'make the bucket', headers })
  if (reply.refusal) throw client.fault(reply, 'make the bucket')
}
