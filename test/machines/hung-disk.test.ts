// A disk that hangs, as on a network file system whose server is gone: its own guests wait, and nobody else does.

import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readlinkSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import t from 'tap'
import { NbdClient } from 'nbd-client-ts'
import { createLog } from '../../src/base/log.ts'
import { native } from '../../src/base/native.ts'
import { Turns } from '../../src/base/turns.ts'
import { Graph } from '../../src/block/graph.ts'
import type { GraphNode } from '../../src/block/graph-node.ts'
import { ALL, Permission } from '../../src/block/permissions.ts'
import { Scratch } from '../../src/block/scratch.ts'
import { describeNode } from '../../src/control/block-device-info.ts'
import { QmpClient } from '../../src/control/qmp-client.ts'
import { FileNode } from '../../src/drivers/file.ts'
import { drivers } from '../../src/drivers/index.ts'
import { filters } from '../../src/filters/index.ts'
import { claimImage } from '../../src/machines/image-claim.ts'
import { Machines } from '../../src/machines/machines.ts'
import { PullSession, type SessionParts } from '../../src/machines/pull-session.ts'
import { StateFolder } from '../../src/machines/state-folder.ts'
import { Exports } from '../../src/nbd-server/exports.ts'
import { NodeExports } from '../../src/nbd-server/node-exports.ts'
import { NbdServer } from '../../src/nbd-server/server.ts'
import { Freeze } from '../../src/transactions/freeze.ts'
import { hangingFile, hangingFileMissing } from '../helpers/hanging-file.ts'
import { openContext } from '../helpers/open-context.ts'
import { scratchFolder } from '../helpers/qemu.ts'
import { diskContent } from '../helpers/random-bytes.ts'
import { environment, WHOLE } from '../helpers/stillpoint.ts'

const SIZE = 4 << 20
const PIECE = 65536
/** For so long the kernel knows what it was told of a file. */
const CACHED_MS = 1100

const machine = (disk: string) => `${disk}: { disks: { root: { image: ./${disk}.raw, format: raw } } }`

/** In a process of its own, as it has a number of threads of its own. */
async function startDaemon(stack: AsyncDisposableStack, folder: string) {
  const child = spawn(process.execPath, [WHOLE, 'daemon', '--config', `${folder}/s.yaml`], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, ...environment() },
  })
  const gone = once(child, 'exit')
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text))
  stack.defer(async () => {
    child.kill()
    await gone
  })
  while (!/ ready /.test(said)) {
    if (child.exitCode !== null) throw new Error(`the daemon did not start: ${said}`)
    await Promise.race([once(child.stderr, 'data'), gone])
  }
}

t.test(
  'while a disk hangs, others are read, written, snapshotted and backed up',
  { skip: hangingFileMissing, timeout: 90_000 },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const content = diskContent(SIZE, 3)
    await writeFile(`${folder}/well.raw`, content)
    const file = await hangingFile(stack, `${folder}/hung.raw`, SIZE)
    await writeFile(
      `${folder}/s.yaml`,
      `state: ./state
control: { socket: ./control.sock }
nbd: [ { unix: ./nbd.sock } ]
machines: { ${machine('well')}, ${machine('hung')} }
`,
    )
    await startDaemon(stack, folder)
    const connect = async (name: string) => stack.use(await NbdClient.connect(`nbd+unix:///${name}?socket=${folder}/nbd.sock`))
    const hung = await connect('hung/root')
    await hung.write(0, Buffer.alloc(PIECE, 'before'))

    file.hang()
    let answered = 0
    const waiting: Promise<void>[] = []
    for (let count = 0; count < 64; count++)
      waiting.push(hung.write((count * PIECE) % SIZE, Buffer.alloc(PIECE, 'hangs')).then(() => void answered++))

    const well = await connect('well/root')
    await well.write(0, Buffer.alloc(PIECE, 'well'))
    await well.flush()
    content.fill('well', 0, PIECE)
    t.ok((await well.read(0, SIZE)).equals(content))
    const qmp = stack.use(await QmpClient.connect(`${folder}/control.sock`))
    await qmp.execute('disk-snapshot', { machine: 'well', disks: [{ disk: 'root', file: `${folder}/over.qcow2` }] })
    await qmp.execute('checkpoint-create', { machine: 'well', name: 'one' })
    await well.write(0, Buffer.alloc(PIECE, 'more'))
    await qmp.execute('backup-begin', { machine: 'well', mode: 'pull', name: 's' })
    const view = await connect('s/root')
    t.ok((await view.read(0, PIECE)).equals(Buffer.alloc(PIECE, 'more')))
    await view.close()
    await qmp.execute('backup-finish', { name: 's' })
    t.equal(answered, 0, 'all the while the other one hung')

    file.goOn()
    await Promise.all(waiting)
    t.equal(answered, 64)
    t.ok((await hung.read(0, PIECE)).equals(Buffer.alloc(PIECE, 'hangs')))
  },
)

t.test(
  'a file that hangs is waited for so long when it is opened, and when it answers later nothing has it open',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const path = `${await scratchFolder(stack)}/hung.raw`
    const file = await hangingFile(stack, path, SIZE)
    file.hang()
    const opening = FileNode.open(path, openContext(), native, { patienceMs: 500 })
    await t.rejects(opening, { name: 'IoError', message: /hung.raw' has not answered for 0.5 s; look at the disk/ })
    file.goOn()
    const isOpen = () => readdirSync('/proc/self/fd').some(fd => targetOf(`/proc/self/fd/${fd}`) === path)
    // The file can be opened by us again, and what was given up has been answered before that.
    await using node = await FileNode.open(path, openContext(), native)
    t.equal(node.size, SIZE)
    await node[Symbol.asyncDispose]()
    while (isOpen()) await sleep(10)
  },
)

t.test(
  'a file whose server has gone is closed with an error of the disk, and the claim to it with a word in the log',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const path = `${await scratchFolder(stack)}/hung.raw`
    const file = await hangingFile(stack, path, SIZE)
    const lines: string[] = []
    const node = await FileNode.open(path, openContext(), native)
    const claim = await claimImage(path, createLog('warn', { write: line => lines.push(line) }, { journal: true }))
    await file.die()
    await sleep(CACHED_MS)
    t.equal((await node.info()).allocated, undefined, 'of a disk that fails that is left out')
    await t.rejects(node[Symbol.asyncDispose](), { name: 'IoError', message: /hung.raw.*not connected/ })
    await claim?.[Symbol.asyncDispose]()
    if (claim) t.match(lines.join(''), /not let go of as it should be.*not connected/)
  },
)

t.test(
  'a view of a disk that hangs is taken away in bounded time: the write in it is answered once, and what it uses is closed after it',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    const file = await hangingFile(stack, `${folder}/hung.raw`, SIZE)
    const graph = stack.use(new Graph([...drivers, ...filters], { patienceMs: 300 }))
    const late: string[] = []
    stack.use(graph.watch((_name, { type, error }) => void (type === 'closes-late' && late.push(error.message))))
    const disk = await graph.add({ driver: 'file', 'node-name': 'disk', filename: `${folder}/hung.raw` })
    const guest = graph.attach(disk, { description: 'a guest', perm: Permission.consistentRead | Permission.write, shared: ALL })
    const freeze = new Freeze(graph, disk, new Scratch(graph, folder, SIZE, 1))
    await freeze.prepare()
    freeze.commit()
    const { filter } = freeze

    file.hang()
    let answered = 0
    const write = guest.write(0, Buffer.alloc(PIECE, 'hangs')).then(() => void answered++)
    await freeze[Symbol.asyncDispose]()
    t.equal(guest.node, disk, 'the view is out of the way')
    t.notOk(graph.find(filter.name))
    t.match(late, [/is taken away, but not closed: what is under way in it has not ended within 0.3 s/])
    await t.rejects(graph.delete('disk'), { message: 'Node disk is in use' })
    t.equal(answered, 0)

    file.goOn()
    await write
    t.equal(answered, 1)
    while ([...graph.nodes].length > 1) await sleep(5)
    t.same([...disk.parents], [guest], 'filter and scratch space are gone')
    const found = Buffer.alloc(PIECE)
    await guest.read(0, found)
    t.ok(found.equals(Buffer.alloc(PIECE, 'hangs')))
    t.equal(late.length, 1, 'nothing failed')
  },
)

const imageOf = async (node: GraphNode) => (await describeNode(node)).image as Record<string, unknown>

const silent = createLog('silent')

/** A graph, exports and a server over a file that hangs, all of which wait no longer than 0.3 s. */
async function impatient(stack: AsyncDisposableStack) {
  const folder = await scratchFolder(stack)
  const file = await hangingFile(stack, `${folder}/hung.raw`, SIZE)
  const content = diskContent(SIZE, 5)
  await writeFile(`${folder}/hung.raw`, content)
  const turns = new Turns()
  const graph = stack.use(new Graph([...drivers, ...filters], { patienceMs: 300, inTurn: work => turns.take(work) }))
  const late: string[] = []
  stack.use(graph.watch((_name, { type, error }) => void (type === 'closes-late' && late.push(error.message))))
  const exports = new Exports()
  const nodeExports = stack.use(new NodeExports({ graph, emit: () => {}, turns, log: silent, patienceMs: 300 }))
  const socket = `${folder}/nbd.sock`
  stack.use(await NbdServer.listen({ unix: socket }, { exports, log: silent }))
  const connect = async (name: string) => stack.use(await NbdClient.connect(`nbd+unix:///${name}?socket=${socket}`))
  return { folder, file, content, turns, graph, late, exports, nodeExports, connect }
}

t.test(
  'a session of which a read hangs ends in bounded time: the view is whole for that read, and is gone after it',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, file, content, turns, graph, late, exports, nodeExports, connect } = await impatient(stack)
    const disk = await graph.add({ driver: 'file', 'node-name': 'disk', filename: `${folder}/hung.raw` })
    const guest = graph.attach(disk, { description: 'a guest', perm: Permission.consistentRead | Permission.write, shared: ALL })
    const freeze = new Freeze(graph, disk, new Scratch(graph, folder, SIZE, 30))
    await freeze.prepare()
    freeze.commit()
    const { view } = freeze
    const exported = await nodeExports.add(exports, { id: 's/root', name: 's/root', node: view })
    const reader = await connect('s/root')

    file.hang()
    let answers = 0
    const reading = reader.read(PIECE, PIECE).finally(() => answers++)
    while (!view.isBusy) await sleep(1)
    const writing = guest.write(PIECE, Buffer.alloc(PIECE, 'after')).finally(() => answers++)
    const session = new PullSession({ disks: [{ freeze, export: exported }] } as unknown as SessionParts)
    await turns.take(() => session[Symbol.asyncDispose]())
    t.match(late, [/is taken away, but not closed/])
    t.equal(guest.node.driver.name, 'copy-before-write', 'what keeps the instant stays over the disk')
    await t.rejects(connect('s/root'))
    t.equal(answers, 0)

    const busy = turns.take(() => sleep(50))
    file.goOn()
    t.ok((await reading).equals(content.subarray(PIECE, 2 * PIECE)), 'it reads the instant')
    await writing
    await busy
    while ([...graph.nodes].length > 1) await sleep(1)
    t.equal(guest.node, disk)
    t.same([...disk.parents], [guest])
    t.same([answers, late.length], [2, 1], 'nothing failed, and nobody was answered twice')
    const found = Buffer.alloc(PIECE)
    await guest.read(PIECE, found)
    t.ok(found.equals(Buffer.alloc(PIECE, 'after')))
  },
)

t.test(
  'what cannot be learned of a disk that hangs is told as it was known, or left out, and holds up no query for longer than a moment',
  { skip: hangingFileMissing },
  async t => {
    await using files = new AsyncDisposableStack()
    const elsewhere = `${await scratchFolder(files)}/other.raw`
    const other = await hangingFile(files, elsewhere, SIZE)
    await using stack = new AsyncDisposableStack()
    const { folder, file, graph } = await impatient(stack)
    const size = '1M'
    await promisify(execFile)('qemu-img', ['create', '-q', '-f', 'qcow2', `${folder}/made.qcow2`, size])
    await promisify(execFile)('qemu-img', ['snapshot', '-c', 'one', `${folder}/made.qcow2`])
    await writeFile(`${folder}/hung.raw`, await readFile(`${folder}/made.qcow2`), { flag: 'r+' })
    await graph.add({ driver: 'file', 'node-name': 'file', filename: `${folder}/hung.raw` })
    const disk = await graph.add({ driver: 'qcow2', 'node-name': 'disk', file: 'file' })
    const unknown = await graph.add({ driver: 'file', 'node-name': 'unknown', filename: elsewhere })
    const describe = () => Promise.all(Array.from([disk, unknown], imageOf))
    const [before] = await describe()
    t.match(before, { snapshots: [{ name: 'one' }], 'actual-size': Number })

    const fresh = await graph.add({ driver: 'file', 'node-name': 'fresh', filename: elsewhere, locking: 'off' })
    file.hang()
    other.hang()
    await sleep(CACHED_MS)
    const since = performance.now()
    const [first, second] = [await describe(), await imageOf(fresh)]
    const third = performance.now()
    t.ok(third - since < 10_000, 'they do not wait for each other')
    t.same(first[0], before, 'as it was known')
    t.equal(second['virtual-size'], SIZE)
    t.equal(second['actual-size'], undefined, 'nobody has asked before')
    await describe()
    t.ok(performance.now() - third < 500, 'and nobody waits twice')

    file.goOn()
    other.goOn()
    while ((await imageOf(fresh))['actual-size'] === undefined) await sleep(1)
  },
)

t.test(
  'who opens a node in another way waits so long for a read that hangs in it, and what was open is closed after that',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, file, content, graph, late } = await impatient(stack)
    const below = await graph.add({ driver: 'file', 'node-name': 'file', filename: `${folder}/hung.raw` })
    const disk = await graph.add({ driver: 'raw', 'node-name': 'disk', file: 'file' })
    const guest = graph.attach(disk, { description: 'a guest', perm: Permission.consistentRead, shared: ALL })
    file.hang()
    const bytes = Buffer.alloc(PIECE)
    const reading = guest.read(PIECE, bytes)
    await graph.setReadOnly(disk, true)
    t.ok(disk.readOnly)
    t.match(late, [/^'disk' is open in another way, but not closed as it was before: .* within 0.3 s/])
    await graph.detach(guest)
    await t.rejects(graph.delete('disk'), { name: 'Busy' }, 'that read is waited for by who takes the node away, too')
    t.same([...below.parents].length, 1)
    file.goOn()
    await reading
    t.ok(bytes.equals(content.subarray(PIECE, 2 * PIECE)))
    while (below.parents.size > 0) await sleep(1)
    await graph.delete('file')
    t.equal(late.length, 2, 'nothing failed')
  },
)

t.test(
  'a disk that hangs holds up a new configuration for so long: one that is to be opened again stays, one that is to go is closed later',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const { folder, file, turns, graph, late, exports, nodeExports, connect } = await impatient(stack)
    const state = stack.use(await StateFolder.open(`${folder}/state`))
    const settings = (readOnly: boolean) => ({
      db: {
        disks: { root: { image: `${folder}/hung.raw`, format: 'raw' as const, bitmaps: `${folder}/bitmaps.qcow2`, readOnly } },
      },
    })
    const machines = stack.use(await Machines.open(settings(false), { graph, exports, nodeExports, state, log: silent }))
    const reconcile = (wanted: Parameters<Machines['reconcile']>[0]) =>
      turns.take(() => machines.reconcile(wanted, (machine, disk) => machine.checkUnused(disk)))
    const guest = await connect('db/root')

    file.hang()
    let answers = 0
    const count = () => answers++
    const first = guest.write(0, Buffer.alloc(PIECE, 'first')).finally(count)
    while (!graph.get('db.root').isBusy) await sleep(1)
    t.match(await reconcile(settings(true)), {
      changes: [],
      problems: [/^not closed disk db\/root: requests on export 'db\/root' did not end within 0.3 s; look at the disk below/],
    })
    const again = await connect('db/root')
    t.notOk(again.readOnly, 'who connects again finds it as it was')
    const second = again.write(PIECE, Buffer.alloc(PIECE, 'second')).finally(count)
    while (graph.get('db.root').highestWrite < 2 * PIECE) await sleep(1)
    t.same((await reconcile({})).changes, ['closed disk db/root'])
    t.match(late, [/^node 'db.root' is taken away, but not closed: /])
    await t.rejects(connect('db/root'))
    t.equal(answers, 0)

    file.goOn()
    await Promise.all([first, second])
    t.equal(answers, 2)
    while (late.length < 1 || [...graph.nodes].length > 0) await sleep(1)
    t.same(await reconcile(settings(false)), { changes: ['opened machine db'], problems: [] })
    const found = await (await connect('db/root')).read(0, 2 * PIECE)
    t.ok(found.equals(Buffer.concat([Buffer.alloc(PIECE, 'first'), Buffer.alloc(PIECE, 'second')])))
  },
)

/** Undefined for one that is closed meanwhile, such as that of the list itself. */
function targetOf(link: string) {
  try {
    return readlinkSync(link)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return undefined
  }
}
