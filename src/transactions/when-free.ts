// An instant that comes when nothing holds it up but guests' own writes.

/** Whoever stores something at every moment is waited for with writes held in the end. */
const ATTEMPTS = 5

export interface Instant {
  /** Waits for what holds it up, with writes going on. */
  readonly approach: () => Promise<void>
  /** Something does again. */
  readonly isHeldUp: () => boolean
  /** Calls its argument once while writes are held, and waits for it. */
  readonly drained: (moment: () => void | Promise<void>) => Promise<void>
  readonly moment: () => void | Promise<void>
}

/** Calls `moment` once with writes held, which are let go again where it would have to wait for somebody else. */
export async function whenFree({ approach, isHeldUp, drained, moment }: Instant): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    await approach()
    let again = false
    await drained(() => {
      again = attempt < ATTEMPTS && isHeldUp()
      return again ? undefined : moment()
    })
    if (!again) return
  }
}
