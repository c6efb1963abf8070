// System calls of a thread that serves a socket by itself and may wait in them, and what the main thread needs to lend it one, through the optional
// package koffi. Memory is told by its address (address.ts): to describe it anew for each call would cost as much as the call.
//
// What fails is an errno below 0, as the kernel itself has it.

import type { KoffiFunc } from 'koffi'
import { addresses, type AddressOf } from './address.ts'
import { NUMBERS, RWF_NOWAIT } from './aio.ts'
import { SEEK_DATA, SEEK_HOLE } from './seek-terms.ts'

/** From Linux's include/uapi/asm-generic/poll.h. */
export const POLLIN = 1
export const POLLOUT = 4

/** From include/linux/socket.h, include/uapi/linux/eventfd.h and fcntl.h. */
const MSG_DONTWAIT = 0x40
const EFD_CLOEXEC = 0o2000000
const EFD_NONBLOCK = 0o4000
const F_DUPFD_CLOEXEC = 1030
const SHUT_RDWR = 2
/** From include/uapi/linux/fcntl.h, splice.h, and asm-generic/fcntl.h and unistd.h. */
const F_SETPIPE_SZ = 1031
const SPLICE_F_NONBLOCK = 2
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
const CACHESTAT = 451

/** Its two ends, which say that they would wait instead of waiting, and how many bytes it holds at most. */
export interface Pipe {
  readonly from: number
  readonly to: number
  readonly size: number
}

export interface ThreadCalls {
  readonly addressOf: AddressOf
  /** How many bytes have come; 0: none will come any more (recv). */
  receive(socket: number, address: number, length: number): number
  /** How many bytes of several parts, each a struct iovec, a socket takes without waiting, which it must be set to (writev). */
  send(socket: number, vectors: number, count: number): number
  /** Reads only what the page cache holds (preadv2, RWF_NOWAIT). */
  readCached(fd: number, offset: number, vectors: number, count: number): number
  /** How many pages of a part of a file the page cache holds (cachestat, since Linux 6.5). */
  cached(fd: number, offset: number, length: number): number
  /** One that holds so much, or as much as the system lets us; undefined where it lets us have none (pipe2, F_SETPIPE_SZ). */
  makePipe(size: number): Pipe | undefined
  /** Copies something into it (write). */
  put(pipe: Pipe, address: number, length: number): number
  /** Moves what a file has there into a pipe, without copying it; waits for the disk, and not for the pipe (splice). */
  fill(pipe: Pipe, fd: number, offset: number, length: number): number
  /** Moves on into a socket what it takes without waiting (splice). */
  drain(pipe: Pipe, socket: number, length: number): number
  /** Takes out what is there (read). */
  take(pipe: Pipe, address: number, length: number): number
  /** Makes what the next two need, for as long as the process lives; undefined where it cannot be had (io_setup). */
  setUp(count: number): bigint | undefined
  /** Does reads and writes one after the other, each a struct iocb: so many were begun (io_submit). */
  submit(context: bigint, count: number, pointers: number): number
  /** What came of them (io_getevents). */
  results(context: bigint, least: number, most: number, events: number): number
  /** Waits until a socket has what is asked for, or the event has come, or so many milliseconds have gone (poll). False: none of them came. */
  wait(socket: number, wanted: number, event: number, timeoutMs: number): boolean
  /** Something that can be waited for: a file descriptor (eventfd). */
  makeEvent(): number
  /** Lets it come. */
  raise(event: number): void
  /** It has not come. */
  reset(event: number): void
  /** A descriptor of its own for the same socket (fcntl, F_DUPFD_CLOEXEC). */
  duplicate(socket: number): number
  /** Nobody sends or receives there any more (shutdown). */
  shutDown(socket: number): void
  /** As those of base/native.ts: where the next data begin, and the next hole; nothing there is ENXIO (lseek). */
  seekData(fd: number, offset: number): number
  seekHole(fd: number, offset: number): number
}

type Call<Args extends (number | bigint | string)[]> = KoffiFunc<(...args: Args) => number>

/** A number of 64 bits, as machines have it that are little-endian. */
function setWords(words: Uint32Array, at: number, value: number) {
  words[at] = value
  words[at + 1] = value / 2 ** 32
}

/** Undefined where there are none for this machine. @throws Error where koffi cannot be loaded */
export async function threadCalls(): Promise<ThreadCalls | undefined> {
  const numbers = NUMBERS[process.arch]
  if (!numbers) return undefined
  const { default: koffi } = await import('koffi')
  const libc = koffi.load(null)
  const addressOf = addresses(koffi)
  const recv: Call<[number, number, number, number]> = libc.func('int64_t recv(int, uintptr_t, size_t, int)')
  const writev: Call<[number, number, number]> = libc.func('int64_t writev(int, uintptr_t, int)')
  const preadv2: Call<[number, number, number, number, number]> = libc.func('int64_t preadv2(int, uintptr_t, int, int64_t, int)')
  const poll: Call<[number, number, number]> = libc.func('int poll(uintptr_t, uint64_t, int)')
  const setUp: Call<[number, number, number]> = libc.func('syscall', 'int64_t', ['int64_t', 'uint32_t', 'uintptr_t'])
  const submit: Call<[number, bigint, number, number]> = libc.func('syscall', 'int64_t', [
    'int64_t',
    'uint64_t',
    'int64_t',
    'uintptr_t',
  ])
  const getEvents: Call<[number, bigint, number, number, number, number]> = libc.func('syscall', 'int64_t', [
    'int64_t',
    'uint64_t',
    'int64_t',
    'int64_t',
    'uintptr_t',
    'uintptr_t',
  ])
  const read: Call<[number, number, number]> = libc.func('int64_t read(int, uintptr_t, size_t)')
  const write: Call<[number, number, number]> = libc.func('int64_t write(int, uintptr_t, size_t)')
  const eventfd: Call<[number, number]> = libc.func('int eventfd(uint32_t, int)')
  const fcntl: Call<[number, number, string, number]> = libc.func('int fcntl(int, int, ...)')
  const shutdown: Call<[number, number]> = libc.func('int shutdown(int, int)')
  const lseek: Call<[number, number, number]> = libc.func('int64_t lseek(int, int64_t, int)')

  const splice: Call<[number, number, number, number, number, number]> = libc.func(
    'int64_t splice(int, uintptr_t, int, uintptr_t, size_t, uint32_t)',
  )
  const pipe2: Call<[number, number]> = libc.func('int pipe2(uintptr_t, int)')
  const cachestat: Call<[number, number, number, number, number]> = libc.func('syscall', 'int64_t', [
    'int64_t',
    'int64_t',
    'uintptr_t',
    'uintptr_t',
    'int64_t',
  ])

  const errnoOr = (result: number) => (result < 0 ? -koffi.errno() : result)
  const one = new BigUint64Array(1)
  const oneAddress = addressOf(one)
  /** Two of struct pollfd: int fd, short events, short revents. */
  const polled = new Int16Array(8)
  const polledFds = new Int32Array(polled.buffer)
  const polledAddress = addressOf(polled)
  /** As two words each: bigints would be garbage each time. */
  const place = new Uint32Array(2)
  const placeAddress = addressOf(place)
  /** A struct cachestat_range, and a struct cachestat behind it, of which the first field is what is asked for. */
  const pages = new Uint32Array(2 * (2 + 5))
  const pagesAddress = addressOf(pages)

  return {
    addressOf,
    receive: (socket, address, length) => errnoOr(recv(socket, address, length, MSG_DONTWAIT)),
    send: (socket, vectors, count) => errnoOr(writev(socket, vectors, count)),
    readCached: (fd, offset, vectors, count) => errnoOr(preadv2(fd, vectors, count, offset, RWF_NOWAIT)),
    cached(fd, offset, length) {
      setWords(pages, 0, offset)
      setWords(pages, 2, length)
      const result = cachestat(CACHESTAT, fd, pagesAddress, pagesAddress + 16, 0)
      return result < 0 ? errnoOr(result) : pages[4]! + pages[5]! * 2 ** 32
    },
    makePipe(wanted) {
      const ends = new Int32Array(2)
      if (pipe2(addressOf(ends), O_CLOEXEC | O_NONBLOCK) < 0) return undefined
      const size = fcntl(ends[0]!, F_SETPIPE_SZ, 'int', wanted)
      return { from: ends[0]!, to: ends[1]!, size: size < 0 ? 64 << 10 : size }
    },
    put: (pipe, address, length) => errnoOr(write(pipe.to, address, length)),
    fill(pipe, fd, offset, length) {
      setWords(place, 0, offset)
      return errnoOr(splice(fd, placeAddress, pipe.to, 0, length, SPLICE_F_NONBLOCK))
    },
    drain: (pipe, socket, length) => errnoOr(splice(pipe.from, 0, socket, 0, length, SPLICE_F_NONBLOCK)),
    take: (pipe, address, length) => errnoOr(read(pipe.from, address, length)),
    setUp(count) {
      one[0] = 0n
      return setUp(numbers.setup, count, oneAddress) === 0 ? one[0] : undefined
    },
    submit: (context, count, pointers) => errnoOr(submit(numbers.submit, context, count, pointers)),
    results: (context, least, most, events) => errnoOr(getEvents(numbers.getEvents, context, least, most, events, 0)),
    wait(socket, wanted, event, timeoutMs) {
      polledFds[0] = socket
      polled[2] = wanted
      polledFds[2] = event
      polled[6] = POLLIN
      return poll(polledAddress, 2, timeoutMs) !== 0
    },
    makeEvent: () => errnoOr(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
    raise(event) {
      one[0] = 1n
      write(event, oneAddress, one.byteLength)
    },
    reset: event => void read(event, oneAddress, one.byteLength),
    duplicate: socket => errnoOr(fcntl(socket, F_DUPFD_CLOEXEC, 'int', 0)),
    shutDown: socket => void shutdown(socket, SHUT_RDWR),
    seekData: (fd, offset) => errnoOr(lseek(fd, offset, SEEK_DATA)),
    seekHole: (fd, offset) => errnoOr(lseek(fd, offset, SEEK_HOLE)),
  }
}
