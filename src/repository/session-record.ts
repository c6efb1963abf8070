// What sessions/<uuid> says: who is at work in the repository, since which epoch, and whether it has committed.

import { z } from 'zod'
import { canonicalJson, parseJson } from './canonical-json.ts'
import { isUuid } from './uuid.ts'

export const SESSIONS = 'sessions/'

/** A restore point as it is kept in a session: its key, and its manifest object in base64. */
const pinned = z.object({ key: z.string(), manifest: z.base64() })

const record = z.object({
  version: z.literal(1),
  id: z.string().refine(isUuid),
  kind: z.enum(['writer', 'reader']),
  /** `expired`: others took it for dead; it can commit nothing any more. */
  state: z.enum(['active', 'committed', 'expired']),
  epoch: z.number().int().min(0),
  /** Goes up with every change. */
  beat: z.number().int().min(0),
  host: z.string(),
  started: z.iso.datetime(),
  /** What a committed writer has committed. Whoever finds it may finish the commit. */
  point: pinned.optional(),
  /** What a reader reads, and must find, also when it is forgotten meanwhile. */
  pins: z.array(pinned).optional(),
})
export type SessionRecord = z.infer<typeof record>

export const sessionKey = (id: string) => `${SESSIONS}${id}`
export const encodeSession = (value: SessionRecord) => canonicalJson(value)
export const decodeSession = (body: Uint8Array, key: string) => parseJson(body, record, key)
