// Waiting, with an end; and the names that a moment gives.

/** The promise's outcome, or what `late` says once the time is up. The promise itself goes on; its failure is then nobody's. */
export async function within<T>(timeoutMs: number, promise: Promise<T>, late: () => Error): Promise<T> {
  const timeout = Promise.withResolvers<never>()
  const timer = setTimeout(() => timeout.reject(late()), timeoutMs)
  try {
    return await Promise.race([promise, timeout.promise])
  } finally {
    clearTimeout(timer)
  }
}

/** A moment as a name, to the second, in UTC: 20261125T014500Z. */
export const timeName = (time = new Date()) => `${time.toISOString().slice(0, 19).replaceAll(/[-:]/g, '')}Z`
