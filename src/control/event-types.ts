// The events of the control socket, as query-qmp-schema and the reference page tell of them. Who emits an event lists it here.

import type { z } from 'zod'

export interface EventType {
  /** As on the wire. */
  readonly name: string
  readonly summary: string
  /** Without it the event has no data. */
  readonly data?: z.ZodType
}

export const eventTypes: readonly EventType[] = []
