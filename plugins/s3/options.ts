// What the configuration says of an S3 store: the keys beside `plugin: s3`.

import { isIP } from 'node:net'
import { z } from 'zod'
import { objectionTo } from '../../src/base/secret-reference.ts'
import { parseDuration, parseSize } from '../../src/base/units.ts'

const text = z.string().min(1, 'must not be empty')

/** One that is a number, too, is not repeated. */
const secret = z.union([z.string(), z.number()], 'must be text').transform((reference, context) => {
  const message = objectionTo(String(reference))
  if (message === undefined) return String(reference)
  context.addIssue({ code: 'custom', message })
  return z.NEVER
})

/** As in the configuration's own keys. */
const written = (read: (text: string) => number | undefined, wanted: string) =>
  z.union([z.string(), z.number()], `must be ${wanted}`).transform((value, context) => {
    const result = read(String(value))
    if (result) return result
    context.addIssue({ code: 'custom', message: `must be ${wanted}, not ${JSON.stringify(value)}` })
    return z.NEVER
  })

const size = written(parseSize, 'a number of bytes a second, such as 50M')

const duration = written(parseDuration, 'a time with its unit, such as 90s or 2m')

const CONNECTIONS = 'must be a whole number from 1 to 256'

const endpoint = z.string().superRefine((value, context) => {
  const url = URL.canParse(value) ? new URL(value) : undefined
  const message = 'must be an address such as https://s3.example.net or http://10.0.0.7:7480, without a path'
  if (!url || !/^https?:$/.test(url.protocol) || url.pathname !== '/' || url.search || url.hash || url.username)
    context.addIssue({ code: 'custom', message })
})

export const s3Options = z
  .strictObject({
    endpoint: endpoint.describe('The address of the store: https://HOST, or http://HOST:PORT where the network is trusted.'),
    bucket: z
      .string()
      .regex(/^[\w.-]{3,63}$/, 'must be a bucket’s name: 3 to 63 letters, digits, "-", "." and "_"')
      .describe('The bucket. It must exist.'),
    prefix: z
      .string()
      .regex(
        /^(?!\/)(?!.*\/\/)(?!.*(?:^|\/)\.{1,2}(?:\/|$))[^\p{Cc}]{0,256}$/u,
        'must be like "site-a/", without empty parts, and of no more than 256 characters',
      )
      .default('')
      .transform(prefix => (prefix === '' || prefix.endsWith('/') ? prefix : `${prefix}/`))
      .describe('What the keys of all objects begin with, so that several repositories can share a bucket.'),
    region: text.default('us-east-1').describe('The region that requests are signed for. Stores of one’s own mostly take any.'),
    'access-key': text.optional().describe('The access key itself, or where it is: file:/PATH, credential:NAME or env:NAME.'),
    'secret-key': secret.optional().describe('Where the secret key is: file:/PATH, credential:NAME or env:NAME.'),
    'session-token': secret.optional().describe('Where the session token of temporary keys is.'),
    profile: text.optional().describe('Instead of the keys: a profile in a file of AWS’s tools.'),
    'profile-file': text.optional().describe('That file. Default: ~/.aws/credentials.'),
    addressing: z
      .enum(['path', 'virtual'], 'must be "path" or "virtual"')
      .optional()
      .describe('Whether the bucket is part of the path or of the host name. Default: "virtual" at amazonaws.com, else "path".'),
    ca: text
      .optional()
      .describe('A file with the certificates of the authorities that are trusted, in PEM, instead of the system’s.'),
    connections: z
      .int(CONNECTIONS)
      .min(1, CONNECTIONS)
      .max(256, CONNECTIONS)
      .default(32)
      .describe('How many requests may be under way at once.'),
    'upload-limit': size.optional().describe('Bytes a second that are sent, all requests together.'),
    'download-limit': size.optional().describe('Bytes a second that are received.'),
    timeout: duration.default(60_000).describe('How long a request may stand still before it is given up and sent again.'),
    retry: duration
      .default(180_000)
      .describe('How long a request is tried again while the store does not answer, or says that it is busy.'),
    'lock-mode': z
      .enum(['GOVERNANCE', 'COMPLIANCE'], 'must be "GOVERNANCE" or "COMPLIANCE"')
      .default('COMPLIANCE')
      .describe('How objects are locked that must not be deleted before a date.'),
    'storage-class': text.optional().describe('The storage class of what is written, where the store has several.'),
  })
  .superRefine(({ profile, ...options }, context) => {
    if (
      options.addressing === 'virtual' &&
      URL.canParse(options.endpoint) &&
      isIP(new URL(options.endpoint).hostname.replaceAll(/[[\]]/g, ''))
    )
      context.addIssue({
        code: 'custom',
        path: ['addressing'],
        message: 'must be "path" where endpoint is an IP address: the bucket can be no part of that',
      })
    const keys = options['access-key'] !== undefined || options['secret-key'] !== undefined
    const both = options['access-key'] !== undefined && options['secret-key'] !== undefined
    if (profile === undefined ? !both : keys || options['session-token'] !== undefined)
      context.addIssue({ code: 'custom', message: 'needs either access-key and secret-key, or profile' })
    if (profile === undefined && options['profile-file'] !== undefined)
      context.addIssue({ code: 'custom', path: ['profile-file'], message: 'goes with profile' })
  })

export type S3Options = z.output<typeof s3Options>
