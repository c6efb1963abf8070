// The file target: the conformance suite, crashes at every step, several processes, and what it shows of itself on disk.

import { spawn } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { FileTarget } from '../../plugins/file/file-target.ts'
import { systemCalls, type SystemCalls } from '../../plugins/file/system-calls.ts'
import { InvalidParameter, IoError } from '../../src/base/errors.ts'
import { native } from '../../src/base/native.ts'
import { sharedMemory } from '../../src/base/shared-memory.ts'
import { NotThere, PreconditionFailed } from '../../src/push/target.ts'
import { collect } from '../../src/repository/collector.ts'
import { forget } from '../../src/repository/points.ts'
import { Repository } from '../../src/repository/repository.ts'
import { newRepository, pushDisks, restored, sourceOf } from '../helpers/push-point.ts'
import { randomBytes } from '../helpers/random-bytes.ts'
import { scratchFolder } from '../helpers/control.ts'
import { directMissing } from '../helpers/direct.ts'
import { listed, targetSuite } from '../helpers/target-suite.ts'
import { missing, run } from '../helpers/tools.ts'

const folder = t.testdir({ suite: {}, linkless: {} })
const noLinks: SystemCalls = {
  ...systemCalls,
  link: () => Promise.reject(Object.assign(new Error('EPERM, link'), { code: 'EPERM' })),
}

targetSuite(t, 'file', async stack => stack.use(await FileTarget.open(`${folder}/suite`)))
targetSuite(t, 'file without hard links', async stack => stack.use(await FileTarget.open(`${folder}/linkless`, noLinks)))

class Killed extends Error {}

/** Does steps until the given one, which fails before or after it was done; so does all that follows, as if the process had ended. */
function killedAt(step: number, when: 'before' | 'after'): SystemCalls & { readonly taken: () => number } {
  let taken = 0
  const guard =
    <Args extends unknown[], T>(call: (...args: Args) => Promise<T>) =>
    async (...args: Args): Promise<T> => {
      const mine = taken++
      if (mine > step || (mine === step && when === 'before')) throw new Killed()
      const result = await call(...args)
      if (mine === step) throw new Killed()
      return result
    }
  return {
    mkdir: guard(systemCalls.mkdir),
    create: guard(async path => {
      const file = await systemCalls.create(path)
      if (taken - 1 === step) await file.close() // the kernel would
      return file
    }),
    write: guard(systemCalls.write),
    writeDirect: guard(systemCalls.writeDirect),
    sync: guard(systemCalls.sync),
    link: guard(systemCalls.link),
    rename: guard(systemCalls.rename),
    unlink: guard(systemCalls.unlink),
    syncFolder: guard(systemCalls.syncFolder),
    taken: () => taken,
  }
}

t.test('a put that ends at any step leaves the old object or the new one, and the next put works', async t => {
  const old = randomBytes(5000, 1)
  const fresh = randomBytes((1 << 20) + 7000, 2) // so large that some of it goes around the page cache
  for (const how of ['create', 'replace', 'compare and swap'] as const) {
    let steps = 0
    for (const when of ['before', 'after'] as const) {
      for (let step = 0; ; step++) {
        const path = t.testdir()
        {
          await using setUp = await FileTarget.open(path)
          if (how !== 'create') await setUp.put('a/b/key', old)
        }
        const calls = killedAt(step, when)
        await using dying = await FileTarget.open(path, calls)
        const tag = how === 'compare and swap' ? (await dying.get('a/b/key')).tag : undefined
        const outcome = await dying
          .put('a/b/key', fresh, how === 'create' ? { ifAbsent: true } : tag ? { ifMatch: tag } : {})
          .then(
            () => 'done',
            (error: unknown) => error,
          )
        if (calls.taken() <= step) break
        steps++

        await using target = await FileTarget.open(path)
        const found = await target.get('a/b/key').then(
          ({ body }) => body,
          (error: unknown) => (error instanceof NotThere ? undefined : Promise.reject(error as Error)),
        )
        if (!(outcome === 'done' || outcome instanceof Killed)) t.fail(`${how}, step ${step}: ${String(outcome)}`)
        const isOld = how === 'create' ? found === undefined : found?.equals(old)
        t.ok(isOld || found?.equals(fresh), `${how}: ${when} step ${step}`)
        if (outcome === 'done') t.ok(found?.equals(fresh), 'done is done')
        const entries = await listed(target, '')
        t.ok(
          entries.every(({ key, size }) => key === 'a/b/key' && size === found?.length),
          'nothing else shows',
        )
        await target.put('a/b/key', Buffer.from('again'))
        await target.put('a/b/other', Buffer.from('again'), { ifAbsent: true })
        t.equal(String((await target.get('a/b/key')).body), 'again')
      }
    }
    t.ok(steps > 10, `${how} has been ended ${steps} times`)
  }
})

t.test('every step that fails fails the put with a sentence, and the target goes on', async t => {
  for (const name of ['create', 'writeDirect', 'write', 'sync', 'mkdir', 'link', 'syncFolder'] as const) {
    const path = t.testdir()
    let failures = 1
    const fails = () => {
      if (failures-- > 0) throw Object.assign(new Error('ENOSPC, x'), { code: 'ENOSPC' })
    }
    const calls = {
      ...systemCalls,
      [name]: async (...args: never[]) => (fails(), (systemCalls[name] as (...a: never[]) => unknown)(...args)),
    }
    await using target = await FileTarget.open(path, calls)
    await t.rejects(target.put('folder/x', Buffer.alloc(2 << 20), { ifAbsent: true }), {
      name: 'NoSpace',
      message: new RegExp(`^${path}: No space left on device; make room there`),
    })
    const there = await listed(target, '')
    t.ok(there.length === 0 || name === 'syncFolder', name)
    await target.put('folder/y', Buffer.alloc(10), { ifAbsent: true })
    t.same(readdirSync(`${path}/.tmp`), [], 'nothing is left behind')
  }
})

/** Of what could go around the page cache, not more than so much does. */
const some = (most: number): SystemCalls => ({
  ...systemCalls,
  writeDirect: (path, body) => systemCalls.writeDirect(path, body.subarray(0, most)),
})

t.test('a large object is what was put, however much of it went around the page cache', async t => {
  const path = t.testdir()
  const MiB = 1 << 20
  const memory = sharedMemory(4 * MiB)
  randomBytes(memory.length, 3).copy(memory)
  for (const [number, calls] of [systemCalls, some(MiB), some(0)].entries()) {
    await using target = await FileTarget.open(path, calls)
    for (const [begin, end] of [
      [0, 4 * MiB],
      [0, 2 * MiB + 777],
      [4096, 2 * MiB],
      [16, 3 * MiB],
      [1, 2 * MiB + 4097],
    ] as const) {
      const body = memory.subarray(begin, end)
      const { tag } = await target.put(`x/${number}-${begin}`, body)
      const found = await target.get(`x/${number}-${begin}`)
      t.ok(found.body.equals(body), `${begin} to ${end}`)
      t.equal(found.tag, tag)
    }
  }
})

t.test(
  'a large object is not in the page cache when it has been put',
  { skip: directMissing || missing('fincore', 'dd') || !native },
  async t => {
    await using stack = new AsyncDisposableStack()
    const path = await scratchFolder(stack)
    const cached = async (name: string) =>
      Number(await run('fincore', ['--bytes', '--noheadings', '--output', 'RES', `${path}/${name}`]))
    await run('dd', ['if=/dev/zero', `of=${path}/theirs`, 'oflag=direct', 'bs=1M', 'count=4', 'status=none'])
    if ((await cached('theirs')) > 0) return void t.pass('a file system that keeps all in the page cache anyway')
    const target = stack.use(await FileTarget.open(path))
    await target.put(
      'large',
      sharedMemory(4 << 20)
        .fill('x')
        .subarray(0, -100),
    )
    t.ok((await cached('large')) <= 1 << 16, 'but what is behind the last whole page')
  },
)

t.test('what a crashed writer left is swept away once it is old, and nothing else is', async t => {
  const path = t.testdir({ '.tmp': { old: 'x', young: 'y' } })
  utimesSync(`${path}/.tmp/old`, 0, 0)
  await using target = await FileTarget.open(path)
  t.same(readdirSync(`${path}/.tmp`), ['young'])
  t.same(await listed(target, ''), [])
})

t.test('what a copy of a folder has is deleted, also where the copy was made without what was empty', async t => {
  const path = t.testdir({ points: { x: 'copied' } })
  await using target = await FileTarget.open(path)
  await target.delete(['points/x', 'points/y'])
  t.same(readdirSync(`${path}/points`), [])
})

t.test('files of other people do not show, and folders that somebody tidied away come back', async t => {
  const path = t.testdir({ '.git': { x: '' }, 'not ours': 'a space is never in a name of ours', 'bad%zz': '', 'sub%2f': '' })
  await using target = await FileTarget.open(path)
  t.same(await listed(target, ''), [])
  await target.put('folder/x', Buffer.from('1'))
  rmSync(`${path}/folder`, { recursive: true })
  await target.put('folder/y', Buffer.from('2'), { ifAbsent: true })
  rmSync(`${path}/folder`, { recursive: true })
  await target.put('folder/z', Buffer.from('3'))
  t.same(
    (await listed(target, '')).map(({ key }) => key),
    ['folder/z'],
  )
})

t.test('an object is a plain file that anybody can read, and not everybody', async t => {
  const path = t.testdir()
  await using target = await FileTarget.open(path)
  await target.put('points/my vm/x', Buffer.from('hello'))
  t.equal(readFileSync(`${path}/points/my%20vm/x`, 'utf8'), 'hello')
  t.equal(statSync(`${path}/points/my%20vm/x`).mode & 0o007, 0)
})

t.test(
  'who reads parts of an object shares it with others, keeps it open no longer, and then finds what is there by then',
  async t => {
    const path = t.testdir()
    await using target = await FileTarget.open(path)
    const isOpen = () => readdirSync('/proc/self/fd').some(fd => linkOf(`/proc/self/fd/${fd}`).startsWith(`${path}/x`))
    const readAll = (body: Buffer) =>
      Promise.all(
        Array.from({ length: 16 }, async (_, part) => {
          const [offset, length] = [part * 70_000, 100_000]
          const { body: read } = await target.get('x', { range: { offset, length } })
          t.equal(Buffer.compare(read, body.subarray(offset, offset + length)), 0)
        }),
      )
    for (const seed of [1, 2]) {
      const body = randomBytes(2 << 20, seed)
      await target.put('x', body)
      await readAll(body)
      t.notOk(isOpen(), 'after the last has read')
    }
    await target.delete(['x'])
    const missing = await Promise.allSettled(
      Array.from({ length: 3 }, () => target.get('x', { range: { offset: 0, length: 1 } })),
    )
    for (const read of missing) t.match(read, { status: 'rejected', reason: NotThere })
    await target.put('x', Buffer.from('it is back'))
    const { body } = await target.get('x', { range: { offset: 6, length: 4 } })
    t.equal(Buffer.from(body).toString(), 'back')
  },
)

/** Empty where it has been closed meanwhile. */
function linkOf(path: string) {
  try {
    return readlinkSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return ''
    throw error
  }
}

t.test('a place that cannot be used says why', async t => {
  const path = t.testdir({ file: 'x' })
  await t.rejects(FileTarget.open(`${path}/file`), /file/)
  await t.rejects(FileTarget.open(`${path}/no/such/parent`), { message: /cannot be made/ })
  await using target = await FileTarget.open(path)
  await t.rejects(target.put('x'.repeat(300), Buffer.alloc(1)), InvalidParameter)
  await t.rejects(target.put('lock', Buffer.alloc(1), { lockUntil: new Date() }), { name: 'NotSupported' })
  mkdirSync(`${path}/folder`)
  await t.rejects(target.get('folder'), NotThere)
  await t.rejects(target.put('folder', Buffer.alloc(1)), IoError)
})

t.test('to look makes nothing, and a folder that has gone away does not pass for one without objects', async t => {
  const path = `${t.testdir()}/store`
  {
    await using target = await FileTarget.open(path)
    await t.rejects(target.get('x'), NotThere)
    t.same(await listed(target, ''), [])
    await target.delete(['x'])
    t.notOk(existsSync(path), 'and who looks for a repository leaves none of it behind')
    await target.put('points/x', Buffer.from('1'))
  }
  for (const left of ['nothing', 'an empty folder'] as const) {
    await using target = await FileTarget.open(path)
    renameSync(path, `${path}.away`)
    if (left === 'an empty folder') mkdirSync(path) // what a disk was mounted on
    const gone = { name: 'NoPlace', exitCode: 10, nbdError: 'EIO', message: /the folder was there, and is not any more/ }
    await t.rejects(target.get('points/x'), gone, left)
    await t.rejects(target.get('points/x', { range: { offset: 0, length: 1 } }), gone, left)
    await t.rejects(listed(target, 'points/'), gone, left)
    await t.rejects(target.put('points/y', Buffer.alloc(1), { ifAbsent: true }), gone, left)
    await t.rejects(target.put('points/x', Buffer.alloc(1)), gone, left)
    await t.rejects(target.delete(['points/x']), gone, left)
    if (left === 'an empty folder')
      t.same(
        readdirSync(path).filter(name => name !== '.lock'),
        [],
        'nothing comes into its place',
      )
    rmSync(path, { recursive: true, force: true })
    renameSync(`${path}.away`, path)
    t.equal(String((await target.get('points/x')).body), '1', 'and when it is back, so is all that was in it')
  }
})

// Several processes, of which one is killed while it holds the lock or writes.
const worker = `
import { FileTarget } from ${JSON.stringify(new URL('../../plugins/file/file-target.js', import.meta.url).href)}
import { PreconditionFailed } from ${JSON.stringify(new URL('../../src/push/target.js', import.meta.url).href)}
const [path, rounds] = process.argv.slice(1)
const target = await FileTarget.open(path)
for (let done = 0; done < Number(rounds);) {
  const { body, tag } = await target.get('counter')
  try {
    await target.put('counter', Buffer.from(String(Number(body.toString()) + 1)), { ifMatch: tag })
    done++
  } catch (error) {
    if (!(error instanceof PreconditionFailed)) throw error
  }
}
await target[Symbol.asyncDispose]()
`

t.test('processes that share the folder lose no update, and a killed one holds nobody up', async t => {
  const path = t.testdir()
  await using target = await FileTarget.open(path)
  await target.put('counter', Buffer.from('0'))
  const start = (rounds: number) =>
    spawn(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', '--input-type=module', '-e', worker, path, String(rounds)],
      {
        cwd: fileURLToPath(new URL('.', import.meta.url)),
        stdio: ['ignore', 'inherit', 'inherit'],
      },
    )
  const ended = (child: ReturnType<typeof start>) => new Promise<number | null>(resolve => child.on('exit', resolve))
  const victim = start(1_000_000)
  const before = async () => Number((await target.get('counter')).body.toString())
  while ((await before()) < 20) await new Promise(resolve => setTimeout(resolve, 20))
  victim.kill('SIGKILL')
  await ended(victim)
  const base = await before()
  t.same(await Promise.all([start(40), start(40)].map(ended)), [0, 0])
  t.equal(await before(), base + 80)
  await t.rejects(target.put('counter', Buffer.alloc(1), { ifAbsent: true }), PreconditionFailed)
  writeFileSync(`${path}/.lock`, '') // even so
  await target.put('counter', Buffer.from('1'))
})

t.test('a disk that is full takes no backup, gives back what it holds, and has kept enough in reserve to make room', async t => {
  const path = `${t.testdir()}/full`
  const used = () =>
    readdirSync(path, { recursive: true, withFileTypes: true })
      .filter(entry => entry.isFile())
      .reduce((sum, { parentPath, name }) => sum + statSync(`${parentPath}/${name}`).size, 0)
  let limit = Infinity
  await using target = await FileTarget.open(path, {
    ...systemCalls,
    write: async (file, body) => {
      if (used() + body.length > limit) throw Object.assign(new Error('ENOSPC, write'), { code: 'ENOSPC' })
      await systemCalls.write(file, body)
    },
    writeDirect: () => Promise.resolve(0),
  })
  await newRepository(target)
  const told: string[] = []
  const repository = await Repository.open(target, { warn: message => told.push(message) })
  const push = (seed: number) =>
    pushDisks(repository, [{ name: 'root', source: sourceOf(randomBytes(2 << 20, seed)) }], { packSize: 4 << 20 })
  const older = await push(1)
  const newer = await push(2)
  const full = (limit = used())
  await t.rejects(push(3), { name: 'NoSpace', message: /repo prune/ })
  t.ok((await restored(repository, newer.key, 'root')).equals(randomBytes(2 << 20, 2)))
  t.match(told, [/nobody is to collect in it until it is over: .*No space left/])
  await forget(repository, older.key)
  await collect(repository, { graceMs: 0, staleMs: 0 })
  t.ok(full - used() > 2 << 20, 'what only the older one needed is gone')
  t.ok((await restored(repository, newer.key, 'root')).equals(randomBytes(2 << 20, 2)))
  t.same(readdirSync(path).includes('.reserve'), false, 'what was kept in reserve has been used')
  limit = Infinity
  await push(3)
  t.ok(readdirSync(path).includes('.reserve'), 'and is there again')
})
