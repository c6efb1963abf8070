// Waiting, with an end; and the names that a moment gives.

/** A part of the time that has passed while this process was stopped, or got no processor, counts as no more than that part. */
const PARTS = 4

/** Does it when so much time has passed; unless it is called off before, by what this returns. */
export function after(timeoutMs: number, act: () => void): () => void {
  let left = PARTS
  let timer: NodeJS.Timeout
  let last: NodeJS.Immediate | undefined
  const wait = () => {
    timer = setTimeout(() => {
      // What has come already is heard of behind the timers of the same turn.
      if (--left === 0) last = setImmediate(act)
      else wait()
    }, timeoutMs / PARTS)
  }
  wait()
  return () => {
    clearTimeout(timer)
    clearImmediate(last)
  }
}

/** The promise's outcome, or what `late` says once the time is up. The promise itself goes on; its failure is then nobody's. */
export async function within<T>(timeoutMs: number, promise: Promise<T>, late: () => Error): Promise<T> {
  const timeout = Promise.withResolvers<never>()
  const callOff = after(timeoutMs, () => timeout.reject(late()))
  try {
    return await Promise.race([promise, timeout.promise])
  } finally {
    callOff()
  }
}

/** A moment as a name, to the second, in UTC: 20261125T014500Z. */
export const timeName = (time = new Date()) => `${time.toISOString().slice(0, 19).replaceAll(/[-:]/g, '')}Z`

/** Clocks of hosts that share something differ. */
const SKEW_MS = 60_000

/** By this clock it is yet to come. */
export const isOfTheFuture = (time: Date, now = new Date()) => time.getTime() > now.getTime() + SKEW_MS
