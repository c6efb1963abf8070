// System calls that Node does not offer, made through the optional package koffi. Without it everything works, slower or coarser:
// whoever uses `native` has another way for when it is undefined.
//
// The calls run on koffi's own threads, never on the event loop: finding data in a file may read from a slow disk.

import type { KoffiFunc } from 'koffi'
import pLimit from 'p-limit'
import { addresses, type AddressOf } from './address.ts'
import { Aio, type FilePart, RWF_NOWAIT } from './aio.ts'
import { messageOf } from './errors.ts'
import { alignDown, alignUp, type Range } from './ranges.ts'
import { SEEK_DATA, SEEK_HOLE } from './seek-terms.ts'
import { beginThread, endThread } from './threads.ts'

export interface TcpState {
  /** Segments that were sent and not acknowledged. */
  readonly unacknowledged: number
  /** Since anything was acknowledged. */
  readonly silentMs: number
}

export interface Native {
  /** Where the first data at or behind `offset` begin; undefined where only a hole follows (lseek, SEEK_DATA). */
  seekData(fd: number, offset: number): Promise<number | undefined>
  /** Where the first hole at or behind `offset` begins; the end of the file counts as one. Undefined behind the end (SEEK_HOLE). */
  seekHole(fd: number, offset: number): Promise<number | undefined>
  /** Gives the range's space back; it reads as zeroes (fallocate, FALLOC_FL_PUNCH_HOLE). The file keeps its size, here and below. */
  punchHole(fd: number, range: Range): Promise<void>
  /** Makes the range read as zeroes, with its space set aside (FALLOC_FL_ZERO_RANGE). */
  zeroRange(fd: number, range: Range): Promise<void>
  /** Sets space aside where there is none; what is there stays (fallocate). */
  allocate(fd: number, range: Range): Promise<void>
  /**
   * Reads what the page cache holds, at once and on this thread: how many bytes that was, 0 where the disk would have to be waited for.
   * Undefined where the file system cannot tell (preadv2, RWF_NOWAIT).
   */
  readCached(fd: number, offset: number, into: Buffer): number | undefined
  /** The same for several, at most MOST_PARTS, in one call. Undefined where that cannot be done in one. */
  readCachedParts(parts: readonly FilePart[]): (number | undefined)[] | undefined
  /**
   * Writes several parts on one thread, at most MOST_PARTS: how many bytes of each, 0 where it failed or was not begun. Undefined where that
   * cannot be done in one.
   */
  writeParts(parts: readonly FilePart[]): Promise<number[] | undefined>
  /** Locks the open file against other processes until it is closed; false when another has it (flock, LOCK_EX). */
  lock(fd: number): Promise<boolean>
  /**
   * Takes a byte of the file for this open file, together with others who take it so, or lets go of it (fcntl, F_OFD_SETLK). False when
   * another open file has it alone. Like the next, at once and not on a thread: it never waits for who has the lock.
   */
  lockByte(fd: number, offset: number, how: 'share' | 'release'): boolean
  /** Whether another open file has taken the byte (F_OFD_GETLK). */
  isByteLocked(fd: number, offset: number): boolean
  /** Lets the system hold so many bytes of what was sent and not yet taken, or as many as it allows (SO_SNDBUF). */
  growSendBuffer(fd: number, bytes: number): void
  /** What the other end of a TCP connection has said of what it was sent (TCP_INFO); undefined where the system does not tell. */
  tcpState(fd: number): TcpState | undefined
  /** How many bytes of a socket are there now, and in `into` from now on; 0 where there are none, or none will come any more (recv). */
  receive(fd: number, into: Buffer): number
  /** How many bytes of the first SENT_AT_ONCE pieces a socket takes now, without waiting; 0 also where it has failed (writev). */
  send(fd: number, pieces: readonly Buffer[]): number
  readonly addressOf: AddressOf
  /** Asks for large pages; a system that has none does without (madvise, MADV_HUGEPAGE). */
  preferLargePages(memory: Buffer): void
  /** Gives the whole pages among these bytes back to the system; they read as zeroes (madvise, MADV_DONTNEED). */
  release(memory: Buffer): void
  /**
   * From how many bytes on memory is had from the system by itself, and how many free ones at the end of all other are kept (mallopt, M_MMAP_THRESHOLD
   * and M_TRIM_THRESHOLD). Undefined where the C library knows no such limits.
   */
  readonly limitHeap: ((apartFrom: number, kept: number) => void) | undefined
  /** Gives all free pages between what is in use back to the system (malloc_trim); where the C library can. */
  readonly trimHeap: (() => void) | undefined
}

/** Pieces that one call sends, at most. */
export const SENT_AT_ONCE = 256

/** From Linux's include/uapi/linux/falloc.h. */
const KEEP_SIZE = 0x01
const PUNCH_HOLE = 0x02
const ZERO_RANGE = 0x10

/** From Linux's include/uapi/asm-generic/fcntl.h. */
const LOCK_EX = 2
const LOCK_NB = 4
const F_RDLCK = 0
const F_WRLCK = 1
const F_UNLCK = 2
const F_OFD_GETLK = 36
const F_OFD_SETLK = 37

/** From Linux's include/uapi/asm-generic/socket.h. */
const SOL_SOCKET = 1
const SO_SNDBUF = 7
/** And include/linux/socket.h. */
const MSG_DONTWAIT = 0x40
const SO_SNDBUFFORCE = 32
/** And include/uapi/linux/tcp.h; so much of struct tcp_info every kernel has. */
const IPPROTO_TCP = 6
const TCP_INFO = 11
const TCP_INFO_BYTES = 104

/** From Linux's include/uapi/asm-generic/mman-common.h. */
const MADV_DONTNEED = 4
const MADV_HUGEPAGE = 14

/** From glibc's malloc.h. */
const M_TRIM_THRESHOLD = -1
const M_MMAP_THRESHOLD = -3

/** As large as pages are anywhere that this runs. */
const PAGE = 64 << 10

/** koffi refuses more than 256 calls at a time, so calls wait for their turn: but no file has so many threads (base/threads.ts). */
const CALLS_AT_ONCE = 240

/** What there is, or the reason why there is nothing, for `doctor`. */
export const { native, whyNotNative } = await load()

async function load(): Promise<{ native?: Native; whyNotNative?: string }> {
  if (process.env['STILLPOINT_NATIVE'] === 'off') return { whyNotNative: 'STILLPOINT_NATIVE=off is set' }
  if (process.platform !== 'linux') return { whyNotNative: `not made for ${process.platform}` }
  try {
    const { default: koffi } = await import('koffi')
    return { native: bind(koffi) }
  } catch (error) {
    return { whyNotNative: messageOf(error) }
  }
}

function bind(koffi: typeof import('koffi').default): Native {
  const libc = koffi.load(null)
  const lseek: KoffiFunc<(fd: number, offset: number, whence: number) => number> = libc.func('int64_t lseek(int, int64_t, int)')
  const fallocate: KoffiFunc<(fd: number, mode: number, offset: number, length: number) => number> = libc.func(
    'int fallocate(int, int, int64_t, int64_t)',
  )
  const flock: KoffiFunc<(fd: number, operation: number) => number> = libc.func('int flock(int, int)')
  const fcntl: KoffiFunc<(fd: number, command: number, type: 'void *', lock: Buffer) => number> =
    libc.func('int fcntl(int, int, ...)')
  const setsockopt: KoffiFunc<(fd: number, level: number, option: number, value: Buffer, length: number) => number> = libc.func(
    'int setsockopt(int, int, int, void *, uint32_t)',
  )
  const getsockopt: KoffiFunc<(fd: number, level: number, option: number, value: Buffer, length: Buffer) => number> = libc.func(
    'int getsockopt(int, int, int, void *, void *)',
  )
  const preadv2 = optional<(fd: number, parts: Uint32Array, count: number, offset: number, flags: number) => number>(() =>
    libc.func('int64_t preadv2(int, void *, int, int64_t, int)'),
  )
  const recv: KoffiFunc<(fd: number, into: Buffer, length: number, flags: number) => number> = libc.func(
    'int64_t recv(int, void *, size_t, int)',
  )
  const writev: KoffiFunc<(fd: number, parts: Uint32Array, count: number) => number> = libc.func(
    'int64_t writev(int, void *, int)',
  )
  const madvise: KoffiFunc<(address: number, length: number, advice: number) => number> = libc.func(
    'int madvise(uintptr_t, size_t, int)',
  )
  const mallopt = optional<(what: number, value: number) => number>(() => libc.func('int mallopt(int, int)'))
  const mallocTrim = optional<(kept: number) => number>(() => libc.func('int malloc_trim(size_t)'))
  const addressOf = addresses(koffi)
  const aio = Aio.over(koffi, libc, addressOf)
  /** struct iovec, as 64-bit machines that are little-endian have it. */
  const vectors = new Uint32Array(4 * SENT_AT_ONCE)
  const fillVector = (index: number, bytes: Buffer) => {
    const address = addressOf(bytes)
    vectors[4 * index] = address
    vectors[4 * index + 1] = address / 2 ** 32
    vectors[4 * index + 2] = bytes.length
  }
  const nameOf = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number, name]))
  const EAGAIN = koffi.os.errno['EAGAIN']!
  const turns = pLimit(CALLS_AT_ONCE)

  /** What failed just now, as Node's own calls throw it. */
  const failed = (name: string) => {
    const errno = koffi.errno()
    const code = nameOf.get(errno) ?? `errno ${errno}`
    return Object.assign(new Error(`${code}, ${name}`), { code, errno: -errno, syscall: name })
  }

  /**
   * Runs a call about an open file, its first argument, on a thread; when it returns -1, throws an error as Node's own calls do. koffi keeps errno for
   * the callback.
   */
  const call = <Args extends unknown[]>(
    name: string,
    made: KoffiFunc<(fd: number, ...args: Args) => number>,
    fd: number,
    ...args: Args
  ) =>
    new Promise<number>((resolve, reject) =>
      beginThread(fd, () => {
        const calling = turns(
          () =>
            new Promise<number>((done, fail) =>
              made.async(fd, ...args, (failure: Error | null, result: number) => {
                endThread(fd)
                if (failure) return fail(failure)
                if (result !== -1) return done(result)
                fail(failed(name))
              }),
            ),
        )
        calling.then(resolve, reject)
      }),
    )

  const seek = async (fd: number, offset: number, whence: number) => {
    try {
      return await call('lseek', lseek, fd, offset, whence)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENXIO') return undefined
      throw error
    }
  }

  const allocate = async (fd: number, mode: number, { offset, length }: Range) => {
    await call('fallocate', fallocate, fd, mode, offset, length)
  }

  return {
    seekData: (fd, offset) => seek(fd, offset, SEEK_DATA),
    seekHole: (fd, offset) => seek(fd, offset, SEEK_HOLE),
    punchHole: (fd, range) => allocate(fd, PUNCH_HOLE | KEEP_SIZE, range),
    zeroRange: (fd, range) => allocate(fd, ZERO_RANGE | KEEP_SIZE, range),
    allocate: (fd, range) => allocate(fd, KEEP_SIZE, range),
    readCached(fd, offset, into) {
      fillVector(0, into)
      const count = preadv2?.(fd, vectors, 1, offset, RWF_NOWAIT)
      if (count !== -1) return count
      return koffi.errno() === EAGAIN ? 0 : undefined
    },
    readCachedParts(parts) {
      const results = aio?.readCached(parts)
      return results?.map(result => (result >= 0 ? result : result === -EAGAIN ? 0 : undefined))
    },
    async writeParts(parts) {
      const results = aio && (await turns(() => aio.write(parts)))
      return results?.map(result => Math.max(result, 0))
    },
    async lock(fd) {
      try {
        await call('flock', flock, fd, LOCK_EX | LOCK_NB)
        return true
      } catch (error) {
        if (heldByAnother(error)) return false
        throw error
      }
    },
    lockByte(fd, offset, how) {
      const lock = flockOf(how === 'share' ? F_RDLCK : F_UNLCK, offset)
      if (fcntl(fd, F_OFD_SETLK, 'void *', lock) !== -1) return true
      const error = failed('fcntl')
      if (heldByAnother(error)) return false
      throw error
    },
    isByteLocked(fd, offset) {
      const lock = flockOf(F_WRLCK, offset)
      if (fcntl(fd, F_OFD_GETLK, 'void *', lock) === -1) throw failed('fcntl')
      return lock.readInt16LE(0) !== F_UNLCK
    },
    growSendBuffer(fd, bytes) {
      const value = Buffer.alloc(4)
      value.writeInt32LE(bytes)
      // Only root may go beyond the system's limit; up to there anybody may.
      if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, value, value.length) !== -1) return
      if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, value.length) === -1) throw failed('setsockopt')
    },
    tcpState(fd) {
      const info = Buffer.alloc(TCP_INFO_BYTES)
      const length = Buffer.alloc(4)
      length.writeInt32LE(info.length)
      if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, length) === -1 || length.readInt32LE() < info.length) return undefined
      return { unacknowledged: info.readUInt32LE(24), silentMs: info.readUInt32LE(56) }
    },
    // What fails here fails again where Node does it, and is told there.
    receive: (fd, into) => Math.max(recv(fd, into, into.length, MSG_DONTWAIT), 0),
    send(fd, pieces) {
      const count = Math.min(pieces.length, SENT_AT_ONCE)
      for (let at = 0; at < count; at++) fillVector(at, pieces[at]!)
      return Math.max(writev(fd, vectors, count), 0)
    },
    addressOf,
    preferLargePages: memory => void madvise(addressOf(memory), memory.length, MADV_HUGEPAGE),
    release(memory) {
      const address = addressOf(memory)
      const begin = alignUp(address, PAGE)
      const end = alignDown(address + memory.length, PAGE)
      if (begin < end) madvise(begin, end - begin, MADV_DONTNEED)
    },
    limitHeap:
      mallopt &&
      ((apartFrom, kept) => {
        mallopt(M_MMAP_THRESHOLD, apartFrom)
        mallopt(M_TRIM_THRESHOLD, kept)
      }),
    trimHeap: mallocTrim && (() => void mallocTrim(0)),
  }
}

/** A call that not every C library has. */
function optional<Call>(find: () => Call): Call | undefined {
  try {
    return find()
  } catch (error) {
    if (/preadv2/.test(messageOf(error))) return undefined
    throw error
  }
}

/** EAGAIN and EWOULDBLOCK are one number with two names. */
const heldByAnother = (error: unknown) =>
  ['EAGAIN', 'EWOULDBLOCK', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')

/**
 * struct flock of one byte, as x64 and arm64 have it: short type, short whence, long start, long length, int pid, with gaps to align them.
 * Open file description locks want a pid of 0.
 */
function flockOf(type: number, offset: number): Buffer {
  const lock = Buffer.alloc(32)
  lock.writeInt16LE(type, 0)
  lock.writeBigInt64LE(BigInt(offset), 8)
  lock.writeBigInt64LE(1n, 16)
  return lock
}
