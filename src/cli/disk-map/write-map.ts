// Asks an NBD export what is where in it, and writes it as it comes.

import { NbdClient, NbdError } from 'nbd-client-ts'
import { IoError, NotFound } from '../../base/errors.ts'
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
  readonly bitmap?: string | undefined
  readonly json: boolean
}

/** @throws NotFound without that bitmap, IoError where the export cannot be asked */
export async function writeMap(uri: string, name: string, { bitmap, json }: MapOptions): Promise<void> {
  try {
    await using client = await NbdClient.connect(uri, {
      contexts: bitmap === undefined ? [ALLOCATION] : [ALLOCATION, BITMAPS + bitmap],
    })
    if (!client.contexts.includes(ALLOCATION)) throw new NotFound(`${name}: the daemon does not say what is allocated in it`)
    if (bitmap !== undefined && !client.contexts.includes(BITMAPS + bitmap)) throw await noBitmap(uri, name, bitmap)
    await write(client, name, { bitmap, json })
  } catch (error) {
    if (error instanceof NbdError) throw new IoError(`${name}: ${error.message}`, { cause: error })
    throw error
  }
}

async function write(client: NbdClient, name: string, { bitmap, json }: MapOptions) {
  using progress = new Progress(`Mapping ${name}`, client.size, { besideAnswer: true })
  const lines = json ? new JsonMap() : new MapTable(client.size, bitmap !== undefined)
  let text = lines.begin()
  // An empty disk has no ranges to ask for.
  const extents = client.size > 0 ? client.extents() : []
  for await (const { offset, length, status } of extents) {
    const { [ALLOCATION]: allocation = 0 } = status
    const dirty = bitmap === undefined ? undefined : status[BITMAPS + bitmap] === 1
    text += lines.range({ offset, length, hole: (allocation & HOLE) !== 0, zero: (allocation & ZERO) !== 0, dirty })
    progress.at(offset + length)
    if (text.length < CHUNK) continue
    print(text)
    text = ''
  }
  print(text + lines.end())
}

async function noBitmap(uri: string, name: string, bitmap: string) {
  await using client = await NbdClient.connect(uri, { contexts: [`${BITMAPS}*`] })
  const there = client.contexts.map(context => context.slice(BITMAPS.length))
  const known = there.length > 0 ? `it has: ${there.join(', ')}` : 'it has none'
  return new NotFound(`The export ${name} has no bitmap ${bitmap}; ${known}`)
}
