// The client's main door.

export type { NbdErrorName } from './protocol.ts'
