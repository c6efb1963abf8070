// Asks an NBD export what is where in it, and writes it as it comes.

import { NbdClient, NbdError } from 'nbd-client-ts'
import { InvalidParameter, IoError, NotFound } from '../../base/errors.ts'
import { print } from '../output.ts'
import { Progress } from '../progress.ts'
import { JsonMap, MapTable } from './map-lines.ts'

const ALLOCATION = 'base:allocation'
const BITMAPS = 'qemu:dirty-bitmap:'
/** base:allocation's bits. */
const HOLE = 1
const ZERO = 2
/** Written at once, in characters. */
const CHUNK = 64 << 10

interface MapOptions {
  readonly bitmaps: readonly string[]
  /** Bytes; to the end where nothing is said. */
  readonly offset?: number | undefined
  readonly length?: number | undefined
  readonly json: boolean
}

/** `uri` is the user's own word, or the daemon's. @throws NotFound without one of the bitmaps, InvalidParameter, IoError where the export cannot be asked */
export async function writeMap(uri: string, name: string, options: MapOptions): Promise<void> {
  const wanted = options.bitmaps.map(bitmap => BITMAPS + bitmap)
  try {
    await using client = await NbdClient.connect(uri, { contexts: [ALLOCATION, ...wanted], allowLocalFiles: true })
    if (!client.contexts.includes(ALLOCATION)) throw new NotFound(`${name}: the server does not say what is allocated in it`)
    const missing = options.bitmaps.find(bitmap => !client.contexts.includes(BITMAPS + bitmap))
    if (missing !== undefined) throw await noBitmap(uri, name, missing)
    await write(client, name, options)
  } catch (error) {
    if (error instanceof NbdError) throw new IoError(`${name}: ${error.message}`, { cause: error })
    throw error
  }
}

async function write(client: NbdClient, name: string, { bitmaps, offset = 0, length: most = Infinity, json }: MapOptions) {
  if (offset > client.size)
    throw new InvalidParameter(`--offset ${offset} is behind the end of ${name}, which is at ${client.size}`)
  const length = Math.min(client.size - offset, most)
  using progress = new Progress(`Mapping ${name}`, length, { besideAnswer: true })
  const lines = json ? new JsonMap(bitmaps) : new MapTable(length, offset + length, bitmaps)
  let text = lines.begin()
  // An empty disk has no ranges to ask for.
  const extents = length > 0 ? client.extents({ offset, length }) : []
  for await (const extent of extents) {
    const { [ALLOCATION]: allocation = 0 } = extent.status
    const dirty = bitmaps.map(bitmap => extent.status[BITMAPS + bitmap] === 1)
    text += lines.range({ ...extent, hole: (allocation & HOLE) !== 0, zero: (allocation & ZERO) !== 0, dirty })
    progress.at(extent.offset + extent.length - offset)
    if (text.length < CHUNK) continue
    print(text)
    text = ''
  }
  print(text + lines.end())
}

async function noBitmap(uri: string, name: string, bitmap: string) {
  await using client = await NbdClient.connect(uri, { contexts: [`${BITMAPS}*`], allowLocalFiles: true })
  const there = client.contexts.map(context => context.slice(BITMAPS.length))
  const known = there.length > 0 ? `it has: ${there.join(', ')}` : 'it has none'
  return new NotFound(`The export ${name} has no bitmap ${bitmap}; ${known}`)
}
