// Reads and checks the configuration file. Whatever is wrong with it is one BadSettings: a line for each problem, with its place.

import { open, readdir } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { BadSettings, strerror } from '../base/errors.ts'
import { nearest } from '../base/nearest.ts'
import { keepOrigin } from './plugin-options.ts'
import { problemsOf, refuse } from './problems.ts'
import { isAddress, schema, type Checked } from './schema.ts'
import type { KeepSettings, Listener, QuiesceSettings, ScheduleSettings, Settings } from './settings.ts'
import { Sources } from './sources.ts'
import { nameOf, YamlSource, type Path, type Problem } from './yaml-source.ts'

/** No configuration has more; what is named by mistake may be an image. */
const MAX_BYTES = 4 << 20
/** Linux's sun_path has 108 bytes, the last of them zero. */
const MAX_SOCKET_PATH = 107

/** The folder beside the configuration whose files are read after it, in the order of their names. */
export const DROP_INS = 'conf.d'

export interface SettingsFile {
  readonly file: string
  readonly bytes: Buffer
}

/** @throws BadSettings */
export const loadSettings = async (file: string): Promise<Settings> => parseFiles(await readFiles(file))

/** The file, and what is dropped in beside it. @throws BadSettings */
export async function readFiles(file: string): Promise<readonly [SettingsFile, ...SettingsFile[]]> {
  const main = await readOne(file)
  const folder = join(dirname(file), DROP_INS)
  const more: SettingsFile[] = []
  for (const name of await dropIns(folder)) more.push(await readOne(join(folder, name)))
  return [main, ...more]
}

async function dropIns(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).filter(name => /^[^.].*\.ya?ml$/.test(name)).toSorted()
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return []
    throw new BadSettings(`cannot look into ${folder}, for what is dropped in: ${strerror(error)}`, { cause: error })
  }
}

async function readOne(file: string): Promise<SettingsFile> {
  try {
    await using handle = await open(file)
    const parts: Buffer[] = []
    for (let length = 0; length <= MAX_BYTES;) {
      const { bytesRead, buffer } = await handle.read(Buffer.alloc(64 << 10))
      if (bytesRead === 0) return { file, bytes: Buffer.concat(parts) }
      parts.push(buffer.subarray(0, bytesRead))
      length += bytesRead
    }
    throw new BadSettings(`${file} has more than ${MAX_BYTES >> 20} MiB, which no configuration has; is it an image?`)
  } catch (error) {
    if (error instanceof BadSettings) throw error
    throw new BadSettings(`cannot read the configuration ${file}: ${strerror(error)}${advice(error)}`, { cause: error })
  }
}

const advice = (error: unknown) => {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ENOENT') return '; write one (config/stillpoint.example.yaml shows how), or name another with --config'
  if (code === 'EISDIR') return '; name a file in it with --config'
  return ''
}

/** As loadSettings, with the file's content at hand. @throws BadSettings */
export const parseSettings = (bytes: Buffer, file: string): Settings => parseFiles([{ file, bytes }])

/** @throws BadSettings */
export function parseFiles(files: readonly [SettingsFile, ...SettingsFile[]]): Settings {
  const { file } = files[0]
  const { source, data } = readSources(files)
  const checked = schema.safeParse(data)
  if (!checked.success) refuse(problemsOf(source, checked.error.issues))
  const settings = settle(checked.data!, file)
  refuse(clashes(settings, source))
  for (const [name, { target }] of Object.entries(settings.repositories))
    keepOrigin(target, { source, path: ['repositories', name] })
  return settings
}

/** What the files say together, not looked at yet. @throws BadSettings where it is no YAML */
export function readSources(files: readonly [SettingsFile, ...SettingsFile[]]) {
  const source = new Sources(files.map(({ file, bytes }) => new YamlSource(decode(bytes, file), file)))
  refuse(source.problems)
  const { file } = files[0]
  if (source.isEmpty) throw new BadSettings(`${file}: the file is empty; config/stillpoint.example.yaml shows what may be in it`)
  return { source, data: dataOf(source, file) }
}

function decode(bytes: Buffer, file: string): string {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    if (text.includes('\0')) throw new BadSettings(`${file}: the file is not text; is it an image?`)
    return text
  } catch (error) {
    if (error instanceof BadSettings) throw error
    const before = bytes.toString('utf8').split('\ufffd')[0]!
    const line = before.split('\n').length
    const column = before.length - before.lastIndexOf('\n')
    throw new BadSettings(`${file}:${line}:${column}: the file is not UTF-8 text; save it as UTF-8`)
  }
}

function dataOf(source: Sources, file: string): unknown {
  try {
    return source.data
  } catch (error) {
    if (error instanceof ReferenceError)
      throw new BadSettings(`${file}: ${error.message.replace(/\.$/, '')}; write out what the aliases stand for`, {
        cause: error,
      })
    throw error
  }
}

/** Paths are relative to the main file's folder. */
function settle(
  { state, control, nbd, machines, repositories, scratch, sessions, schedules, limits, metrics, web, notify }: Checked,
  file: string,
): Settings {
  const folder = dirname(resolve(file))
  const absolute = (path: string) => resolve(folder, path)
  return {
    file: resolve(file),
    state: absolute(state),
    control: { socket: absolute(control.socket) },
    nbd: nbd.map(listener => settleListener(listener, absolute)),
    machines: mapValues(machines, ({ disks, quiesce, hooks }, machine) => ({
      disks: mapValues(disks, ({ image, format, bitmaps, 'read-only': readOnly, ...limits }, disk) => ({
        image: absolute(image),
        format,
        bitmaps: bitmaps === undefined ? join(absolute(state), 'bitmaps', `${machine}.${disk}.qcow2`) : absolute(bitmaps),
        readOnly,
        ...(limits['max-clients'] !== undefined && { maxClients: limits['max-clients'] }),
        ...(limits['single-writer'] === true && { singleWriter: true }),
      })),
      ...(quiesce && { quiesce: settleQuiesce(quiesce, absolute) }),
      ...(hooks && { hooks: { before: hooks.before, after: hooks.after, timeoutMs: hooks.timeout } }),
    })),
    repositories: mapValues(repositories, ({ encryption, ...target }) => ({
      // Ours are the only plugins whose paths we know.
      target:
        target.plugin === 'file' && typeof target['path'] === 'string' && !isAddress(target['path'])
          ? { ...target, path: absolute(target['path']) }
          : target,
      key: encryption?.key,
    })),
    scratch: {
      path: scratch.path ? absolute(scratch.path) : join(absolute(state), 'scratch'),
      limit: scratch.limit,
      timeoutMs: scratch.timeout,
    },
    sessions: { expireMs: sessions.expire },
    schedules: mapValues(schedules, scheduleOf),
    ...(metrics && { metrics: metrics.listen ?? { unix: absolute(metrics.unix!) } }),
    ...(web && { web: { place: web.listen ?? { unix: absolute(web.unix!) }, hosts: web.hosts.map(name => name.toLowerCase()) } }),
    notify: notify.map(({ timeout: timeoutMs, ...rest }) => ({ ...rest, timeoutMs })),
    limits,
  }
}

function settleListener(
  {
    unix,
    mode = '660',
    tcp,
    tls,
    allow,
    'in-the-clear': inTheClear,
    'keep-alive': keepAlive,
    idle,
    speed,
  }: Checked['nbd'][number],
  absolute: (path: string) => string,
): Listener {
  const where = tcp ?? {
    unix: unix!.startsWith('@') ? `\0${unix!.slice(1)}` : absolute(unix!),
    mode: Number.parseInt(mode, 8),
  }
  const by = typeof tls === 'object' ? tls : undefined
  return {
    ...where,
    ...(by && {
      tls: 'psk' in by ? { psk: absolute(by.psk) } : { certificates: absolute(by.certificates), verifyPeer: by['verify-peer'] },
    }),
    ...(inTheClear && { inTheClear }),
    ...(allow && {
      allow: allow.map(({ 'read-only': readOnly, ...rule }) => ({ ...rule, ...(readOnly && { readOnly }) })),
    }),
    ...(keepAlive !== undefined && { keepAliveMs: keepAlive }),
    ...(idle !== undefined && { idleMs: idle }),
    ...(speed !== undefined && { speed }),
  }
}

function settleQuiesce(
  { agent, freeze, thaw, timeout: timeoutMs, 'on-failure': onFailure }: NonNullable<Checked['machines'][string]['quiesce']>,
  absolute: (path: string) => string,
): QuiesceSettings {
  return agent === undefined
    ? { freeze: freeze!, thaw: thaw!, timeoutMs, onFailure }
    : { agent: absolute(agent), timeoutMs, onFailure }
}

function scheduleOf(checked: Checked['schedules'][string], name: string): ScheduleSettings {
  const {
    'time-zone': timeZone,
    'catch-up': catchUp,
    'retry-after': retryAfterMs,
    'stale-after': staleAfterMs,
    ...schedule
  } = checked
  const { machines, mode, repository, at, jitter: jitterMs = 0, window: windowMs, retries, keep } = schedule
  const times = typeof at === 'string' ? [at] : at
  return {
    name,
    machines,
    mode,
    repository,
    at: times,
    timeZone,
    jitterMs,
    catchUp,
    windowMs,
    retries,
    retryAfterMs,
    ...(staleAfterMs !== undefined && { staleAfterMs }),
    ...(keep && { keep: keepOf(keep) }),
  }
}

function keepOf({ within, ...counts }: NonNullable<Checked['schedules'][string]['keep']>): KeepSettings {
  const given = Object.entries({ ...counts, withinMs: within }).filter(([, value]) => value !== undefined)
  return Object.fromEntries(given)
}

const mapValues = <A, B>(record: Record<string, A>, to: (value: A, key: string) => B): Record<string, B> =>
  Object.fromEntries(Object.entries(record).map(([key, value]) => [key, to(value, key)]))

/** What no single key shows: what is there twice, what is named and is not there, a socket whose path no system call takes. */
function clashes(
  { control, nbd, machines, repositories, schedules, metrics, web, notify }: Settings,
  source: Sources,
): Problem[] {
  const problems: Problem[] = []
  const seen = new Map<string, string>()
  const once = (what: string, path: Path, value: string) => {
    const other = seen.get(value)
    if (other)
      problems.push({ place: source.placeOf(path), sentence: `"${nameOf(path)}" is the same ${what} as "${other}": ${value}` })
    else seen.set(value, nameOf(path))
  }
  const socket = (path: Path, value: string) => {
    once('socket', path, value)
    const excess = Buffer.byteLength(value) - MAX_SOCKET_PATH
    if (excess > 0)
      problems.push({
        place: source.placeOf(path),
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
  const known = (what: string, path: Path, name: string, names: readonly string[]) => {
    if (names.includes(name)) return
    const meant = nearest(name, names)
    const advice = meant ? `did you mean "${meant}"?` : `there are ${names.map(one => `"${one}"`).join(', ') || 'none'}`
    problems.push({ place: source.placeOf(path), sentence: `"${nameOf(path)}" names no ${what}: "${name}"; ${advice}` })
  }
  for (const [schedule, { machines: wanted, repository }] of Object.entries(schedules)) {
    const path = ['schedules', schedule]
    wanted.forEach((name, index) => known('machine', [...path, 'machines', index], name, Object.keys(machines)))
    if (repository !== undefined) known('repository', [...path, 'repository'], repository, Object.keys(repositories))
  }
  notify.forEach(({ schedules: wanted = [] }, index) =>
    wanted.forEach((name, at) => known('schedule', ['notify', index, 'schedules', at], name, Object.keys(schedules))),
  )
  for (const [key, place] of Object.entries({ metrics, web: web?.place })) {
    if (place && 'unix' in place) socket([key, 'unix'], place.unix)
    else if (place && place.port !== 0) once('address', [key, 'listen'], `${place.host} port ${place.port}`)
  }
  return problems
}
