// Events: what happens without anybody's having asked for it just now, told to whoever listens on the control socket.

/** Tells an event, in QMP's words. Never waits and never throws. */
export type Emit = (event: string, data: Readonly<Record<string, unknown>>) => void
