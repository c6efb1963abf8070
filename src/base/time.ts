// Waiting, with an end; and the names that a moment gives.

/** A part of the time that has passed while this process was stopped, or got no processor, counts as no more than that part. */
const PARTS = 4

/** The promise's outcome, or what `late` says once the time is up. The promise itself goes on; its failure is then nobody's. */
export async function within<T>(timeoutMs: number, promise: Promise<T>, late: () => Error): Promise<T> {
  const timeout = Promise.withResolvers<never>()
  let left = PARTS
  let timer: NodeJS.Timeout
  const wait = () => {
    timer = setTimeout(() => {
      // What has come already is heard of behind the timers of the same turn.
      if (--left === 0) setImmediate(() => timeout.reject(late()))
      else wait()
    }, timeoutMs / PARTS)
  }
  wait()
  try {
    return await Promise.race([promise, timeout.promise])
  } finally {
    clearTimeout(timer!)
  }
}

/** A moment as a name, to the second, in UTC: 20261125T014500Z. */
export const timeName = (time = new Date()) => `${time.toISOString().slice(0, 19).replaceAll(/[-:]/g, '')}Z`
