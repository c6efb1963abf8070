// System calls of a thread that serves a socket by itself and may wait in them, and what the main thread needs to lend it one, through the optional
// package koffi. Memory is told by its address (address.ts): to describe it anew for each call would cost as much as the call.
//
// What fails is an errno below 0, as the kernel itself has it.

import type { KoffiFunc } from 'koffi'
import { addresses, type AddressOf } from './address.ts'
import { NUMBERS, RWF_NOWAIT } from './aio.ts'

/** From Linux's include/uapi/asm-generic/poll.h. */
export const POLLIN = 1
export const POLLOUT = 4

/** From include/linux/socket.h, include/uapi/linux/eventfd.h and fcntl.h. */
const MSG_DONTWAIT = 0x40
const EFD_CLOEXEC = 0o2000000
const EFD_NONBLOCK = 0o4000
const F_DUPFD_CLOEXEC = 1030
const SHUT_RDWR = 2

export interface ThreadCalls {
  readonly addressOf: AddressOf
  /** How many bytes have come; 0: none will come any more (recv). */
  receive(socket: number, address: number, length: number): number
  /** How many bytes of several parts, each a struct iovec, a socket takes without waiting, which it must be set to (writev). */
  send(socket: number, vectors: number, count: number): number
  /** Reads only what the page cache holds (preadv2, RWF_NOWAIT). */
  readCached(fd: number, offset: number, vectors: number, count: number): number
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
}

type Call<Args extends (number | bigint | string)[]> = KoffiFunc<(...args: Args) => number>

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

  const errnoOr = (result: number) => (result < 0 ? -koffi.errno() : result)
  const one = new BigUint64Array(1)
  const oneAddress = addressOf(one)
  /** Two of struct pollfd: int fd, short events, short revents. */
  const polled = new Int16Array(8)
  const polledFds = new Int32Array(polled.buffer)
  const polledAddress = addressOf(polled)

  return {
    addressOf,
    receive: (socket, address, length) => errnoOr(recv(socket, address, length, MSG_DONTWAIT)),
    send: (socket, vectors, count) => errnoOr(writev(socket, vectors, count)),
    readCached: (fd, offset, vectors, count) => errnoOr(preadv2(fd, vectors, count, offset, RWF_NOWAIT)),
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
  }
}
