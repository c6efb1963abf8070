// An image is the disk of one daemon. A second one that is configured for it too would write beside the first, which would not mark what it
// writes; and the locks of QEMU's programs, which are ours too, keep out a VM that uses the image, but not another server of it: servers share it
// for writing (qemu-storage-daemon does as well).

import { open } from 'node:fs/promises'
import { Busy, IoError } from '../base/errors.ts'
import type { Log } from '../base/log.ts'
import { native } from '../base/native.ts'
import { systemFault } from '../base/system-fault.ts'
import { within } from '../base/time.ts'

/** Of the image's lock bytes one that means nothing to QEMU, whose are from 100 to 299. */
const BYTE = 400
const PATIENCE_MS = 10_000

/**
 * Held until it is disposed of, however this process ends. That is waited for so long where the disk hangs; it ends by itself then.
 * @throws Busy where another daemon has it
 */
export async function claimImage(image: string, log: Log, closePatienceMs = PATIENCE_MS): Promise<AsyncDisposable | undefined> {
  if (!native) return undefined
  const opening = open(image, 'r')
  const file = await within(PATIENCE_MS, opening, () => {
    // Nobody waits for it any more.
    opening.then(
      late => late.close(),
      (error: unknown) => log.debug('an image that did not answer could not be opened', { image, err: error }),
    )
    return new IoError(`${image} cannot be opened: it has not answered for ${PATIENCE_MS / 1000} s`)
  }).catch((error: unknown) => {
    throw systemFault(`Could not open '${image}'`, error)
  })
  const claim = (): AsyncDisposable => ({
    async [Symbol.asyncDispose]() {
      try {
        await within(closePatienceMs, file.close(), () => new Busy(`it has not been closed within ${closePatienceMs / 1000} s`))
      } catch (error) {
        // Nothing was written by it, and the kernel has let go of it, or will.
        log.warn('an image was not let go of as it should be: look at the disk that it is on', {
          image,
          err: systemFault(image, error),
        })
      }
    },
  })
  try {
    // Of two that come at once at least one sees the other.
    native.lockByte(file.fd, BYTE, 'share')
    if (!native.isByteLocked(file.fd, BYTE)) return claim()
  } catch (error) {
    // As QEMU's: where the file system has no locks nobody is kept out.
    log.warn('an image cannot be locked against other daemons', { image, err: error })
    return claim()
  }
  await file.close()
  throw new Busy(
    `${image} is a disk of another Stillpoint daemon: stop that one, or take the disk out of one of the two configurations`,
  )
}
