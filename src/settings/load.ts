// Reads and checks the configuration file. Whatever is wrong with it is one BadSettings: a line for each problem, with its place.

import { readFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { BadSettings, strerror } from '../base/errors.ts'
import { problemsOf } from './problems.ts'
import { schema, type Checked } from './schema.ts'
import type { Listener, Settings } from './settings.ts'
import { nameOf, YamlSource, type Path, type Problem } from './yaml-source.ts'

/** As many as one cares to read at once; the next run shows the rest. */
const MAX_PROBLEMS = 20
/** Linux's sun_path has 108 bytes, the last of them zero. */
const MAX_SOCKET_PATH = 107

/** @throws BadSettings */
export async function loadSettings(file: string): Promise<Settings> {
  let bytes: Buffer
  try {
    bytes = await readFile(file)
  } catch (error) {
    throw new BadSettings(`cannot read the configuration ${file}: ${strerror(error)}${advice(error)}`, { cause: error })
  }
  return parseSettings(bytes, file)
}

const advice = (error: unknown) => {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ENOENT') return '; write one (config/stillpoint.example.yaml shows how), or name another with --config'
  if (code === 'EISDIR') return '; name a file in it with --config'
  return ''
}

/** As loadSettings, with the file's content at hand. @throws BadSettings */
export function parseSettings(bytes: Buffer, file: string): Settings {
  const source = new YamlSource(decode(bytes, file))
  refuse(source, file, source.problems)
  if (source.isEmpty) throw new BadSettings(`${file}: the file is empty; config/stillpoint.example.yaml shows what may be in it`)
  const checked = schema.safeParse(dataOf(source, file))
  if (!checked.success) refuse(source, file, problemsOf(source, checked.error.issues))
  const settings = settle(checked.data!, file)
  refuse(source, file, clashes(settings, source))
  return settings
}

function decode(bytes: Buffer, file: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    const before = bytes.toString('utf8').split('\ufffd')[0]!
    const line = before.split('\n').length
    const column = before.length - before.lastIndexOf('\n')
    throw new BadSettings(`${file}:${line}:${column}: the file is not UTF-8 text; save it as UTF-8`)
  }
}

function dataOf(source: YamlSource, file: string): unknown {
  try {
    return source.data
  } catch (error) {
    if (error instanceof ReferenceError)
      throw new BadSettings(`${file}: ${error.message}; write out what the aliases stand for`, { cause: error })
    throw error
  }
}

function refuse(source: YamlSource, file: string, problems: readonly Problem[]) {
  if (problems.length === 0) return
  const offsets = new Set<number>()
  const lines = problems
    .map(({ offset = 0, sentence }) => ({ offset, sentence }))
    .toSorted((a, b) => a.offset - b.offset)
    // One for each place: what else is wrong there often follows from it.
    .filter(({ offset }) => !offsets.has(offset) && offsets.add(offset))
    .slice(0, MAX_PROBLEMS)
    .map(({ offset, sentence }) => {
      const { line, column } = source.positionOf(offset)
      return `${file}:${line}:${column}: ${sentence}`
    })
  throw new BadSettings(lines.join('\n'))
}

/** Paths are relative to the file's folder. */
function settle({ state, control, nbd, machines, repositories, scratch, sessions }: Checked, file: string): Settings {
  const folder = dirname(resolve(file))
  const absolute = (path: string) => resolve(folder, path)
  return {
    file: resolve(file),
    state: absolute(state),
    control: { socket: absolute(control.socket) },
    nbd: nbd.map(({ unix, tcp }): Listener => (tcp ? tcp : { unix: absolute(unix!) })),
    machines: mapValues(machines, ({ disks }, machine) => ({
      disks: mapValues(disks, ({ image, format, bitmaps, 'read-only': readOnly }, disk) => ({
        image: absolute(image),
        format,
        bitmaps: bitmaps === undefined ? join(absolute(state), 'bitmaps', `${machine}.${disk}.qcow2`) : absolute(bitmaps),
        readOnly,
      })),
    })),
    repositories: mapValues(repositories, ({ encryption, ...target }) => ({
      // Ours are the only plugins whose paths we know.
      target:
        target.plugin === 'file' && typeof target['path'] === 'string' ? { ...target, path: absolute(target['path']) } : target,
      key: encryption?.key,
    })),
    scratch: {
      path: scratch.path ? absolute(scratch.path) : join(absolute(state), 'scratch'),
      limit: scratch.limit,
      timeoutMs: scratch.timeout,
    },
    sessions: { expireMs: sessions.expire },
  }
}

const mapValues = <A, B>(record: Record<string, A>, to: (value: A, key: string) => B): Record<string, B> =>
  Object.fromEntries(Object.entries(record).map(([key, value]) => [key, to(value, key)]))

/** What no single key shows: a socket or an image that is there twice, a socket whose path no system call takes. */
function clashes({ control, nbd, machines }: Settings, source: YamlSource): Problem[] {
  const problems: Problem[] = []
  const seen = new Map<string, string>()
  const once = (what: string, path: Path, value: string) => {
    const other = seen.get(value)
    if (other)
      problems.push({ offset: source.offsetOf(path), sentence: `"${nameOf(path)}" is the same ${what} as "${other}": ${value}` })
    else seen.set(value, nameOf(path))
  }
  const socket = (path: Path, value: string) => {
    once('socket', path, value)
    const excess = Buffer.byteLength(value) - MAX_SOCKET_PATH
    if (excess > 0)
      problems.push({
        offset: source.offsetOf(path),
        sentence: `the path of this socket is ${excess} bytes too long for Linux: ${value}`,
      })
  }
  if (control.socket !== undefined) socket(['control', 'socket'], control.socket)
  nbd.forEach((listener, index) => {
    if ('unix' in listener) socket(['nbd', index, 'unix'], listener.unix)
    else once('address', ['nbd', index, 'tcp'], `${listener.host} port ${listener.port}`)
  })
  for (const [machine, { disks }] of Object.entries(machines)) {
    for (const [disk, { image, bitmaps }] of Object.entries(disks)) {
      once('image', ['machines', machine, 'disks', disk, 'image'], image)
      once('image', ['machines', machine, 'disks', disk, 'bitmaps'], bitmaps)
    }
  }
  return problems
}
