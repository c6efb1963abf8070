// The thread that opens a ZIP file of somebody else's (zip-file.ts). Whatever is in it can hurt this thread at most, which has little memory.
//
// node-stream-zip reads the directory. Its weak places are closed before and behind it: the records at the end must be where they belong,
// so that it searches for nothing; no two entries may share bytes; nothing is inflated beyond what its reader expects.

import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { crc32, inflateRawSync } from 'node:zlib'
import StreamZip from 'node-stream-zip'
import { messageOf } from '../base/errors.ts'
import type { ZipAnswer, ZipJob, ZipWorkerData } from './zip-job.ts'
import { Method } from './zip-writer.ts'

const { path } = workerData as ZipWorkerData

interface Entry extends StreamZip.ZipEntry {
  readonly fnameLen: number
  readonly extraLen: number
}
/** What its declarations leave out. */
interface Zip {
  on(event: 'ready', listener: () => void): void
  on(event: 'entry', listener: (entry: Entry) => void): void
  on(event: 'error', listener: (error: Error) => void): void
  openEntry(entry: Entry, callback: (error: Error | null | undefined) => void, sync: boolean): void
}

const END = 22
const LOCATOR = 20
const END64 = 56
const LOCAL = 30
const CENTRAL = 46
/** What is told of each entry is kept in memory. */
const MAX_ENTRIES = 2_000_000
const ENCRYPTED = 1

const fd = openSync(path, 'r')
const size = fstatSync(fd).size

function bytesAt(offset: number, length: number) {
  const into = Buffer.alloc(length)
  for (let done = 0; done < length;) {
    const read = readSync(fd, into, done, length - done, offset + done)
    if (read === 0) throw new Error('it ends too early')
    done += read
  }
  return into
}

const exact = (value: bigint) => {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error('it has numbers that no file has')
  return Number(value)
}

/** Where the directory is, by the records at the very end. */
function directoryOf() {
  if (size < END) throw new Error('it is too short for a ZIP file')
  const end = bytesAt(size - END, END)
  if (end.readUInt32LE(0) !== 0x06054b50 || end.readUInt16LE(20) !== 0)
    throw new Error('it does not end as a ZIP file does; is all of it there?')
  let [count, length, start, at] = [end.readUInt16LE(10), end.readUInt32LE(12), end.readUInt32LE(16), size - END]
  if (count === 0xffff || length === 0xffffffff || start === 0xffffffff) {
    if (at < LOCATOR + END64) throw new Error('it is too short for a ZIP64 file')
    const locator = bytesAt(at - LOCATOR, LOCATOR)
    at -= LOCATOR + END64
    const end64 = bytesAt(at, END64)
    if (
      locator.readUInt32LE(0) !== 0x07064b50 ||
      end64.readUInt32LE(0) !== 0x06064b50 ||
      exact(locator.readBigUInt64LE(8)) !== at
    )
      throw new Error('its ZIP64 records are damaged')
    count = exact(end64.readBigUInt64LE(32))
    length = exact(end64.readBigUInt64LE(40))
    start = exact(end64.readBigUInt64LE(48))
    if (exact(end64.readBigUInt64LE(24)) !== count) throw new Error('it is a part of a divided archive')
  } else if (end.readUInt16LE(8) !== count) throw new Error('it is a part of a divided archive')
  if (start + length !== at || count * CENTRAL > length) throw new Error('its directory is not where it should be')
  if (count > MAX_ENTRIES) throw new Error(`it has ${count} entries, and ${MAX_ENTRIES} is the most that is read`)
  return { count, start }
}

const entries = new Map<string, Entry>()
let zip: Zip

async function open() {
  const { count, start } = directoryOf()
  if (count === 0) return
  const opened = Promise.withResolvers<void>()
  zip = new StreamZip({ file: path, storeEntries: false }) as unknown as Zip
  zip.on('entry', entry => {
    if (entries.has(entry.name)) throw new Error(`it has two entries '${entry.name.slice(0, 100)}'`)
    entries.set(entry.name, entry)
  })
  zip.on('ready', () => opened.resolve())
  zip.on('error', error => opened.reject(error))
  await opened.promise
  if (entries.size !== count) throw new Error('its directory has not as many entries as it says')
  // By where they are: each ends before the next one begins.
  let next = start
  for (const { name, offset, compressedSize } of [...entries.values()].sort((a, b) => b.offset - a.offset)) {
    if (offset + LOCAL + compressedSize > next) throw new Error(`the entry '${name.slice(0, 100)}' reaches into the next one`)
    next = offset
  }
}

function read({ name, most }: ZipJob): Uint8Array<ArrayBuffer> {
  const entry = entries.get(name)
  if (!entry) throw new Error(`there is no entry '${name}'`)
  const what = `the entry '${name}'`
  if (entry.size > most || entry.compressedSize > most + (most >> 8) + 1024) throw new Error(`${what} is larger than it may be`)
  if ((entry.flags & ENCRYPTED) !== 0) throw new Error(`${what} is encrypted`)
  const { crc } = entry
  let failure: Error | null | undefined
  zip.openEntry(entry, error => (failure = error), true)
  if (failure) throw new Error(`${what}: ${failure.message}`, { cause: failure })
  const stored = bytesAt(entry.offset + LOCAL + entry.fnameLen + entry.extraLen, entry.compressedSize)
  const plain = entry.method === Method.stored ? stored : inflate(entry, stored, what)
  if (plain.length !== entry.size || crc32(plain) !== crc) throw new Error(`${what} is damaged`)
  return new Uint8Array(plain) // of its own, so that it can be given away
}

function inflate({ method, size: plain }: Entry, stored: Buffer, what: string): Buffer {
  if (method !== Method.deflated) throw new Error(`${what} is compressed in a way that is not supported (${method})`)
  try {
    return inflateRawSync(stored, { maxOutputLength: Math.max(1, plain) })
  } catch (error) {
    throw new Error(`${what} is damaged: ${messageOf(error)}`, { cause: error })
  }
}

const answer = (value: ZipAnswer) => parentPort!.postMessage(value, value.bytes ? [value.bytes.buffer] : [])

try {
  await open()
  parentPort!.on('message', (job: ZipJob) => {
    try {
      answer({ number: job.number, bytes: read(job) })
    } catch (error) {
      answer({ number: job.number, failure: messageOf(error) })
    }
  })
  answer({})
} catch (error) {
  closeSync(fd)
  answer({ failure: messageOf(error) })
  process.exit()
}
