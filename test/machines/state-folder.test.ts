// The state folder: several files at once are as they were or as they are to be, and one that hangs is waited for only so long.

import { systemError, watchFiles } from '../helpers/file-changes.ts'
import { cp, readFile } from 'node:fs/promises'
import { cpSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { z } from 'zod'
import { messageOf } from '../../src/base/errors.ts'
import { StateFolder } from '../../src/machines/state-folder.ts'
import { startAppliance } from '../helpers/appliance.ts'
import { hangingFile, hangingFileMissing } from '../helpers/hanging-file.ts'
import { scratchFolder } from '../helpers/qemu.ts'

const NAMES = ['one', 'two', 'three']
const withValue = (value: string) => NAMES.map(name => ({ name, data: { value: `${value} of ${name}` } }))

async function valuesIn(state: StateFolder) {
  const found: string[] = []
  for (const name of NAMES) {
    const data = await state.read(name, z.strictObject({ value: z.string() }))
    found.push(data?.value.split(' ')[0] ?? 'none')
  }
  return found.join()
}

/** What the next daemon finds. */
async function afterRestart(path: string) {
  await using state = await StateFolder.open(path)
  return await valuesIn(state)
}

const BEFORE = 'before,before,before'
const AFTER = 'after,after,after'

t.test('files that are written together are all as before or all as after, whenever the daemon is killed', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  await using state = await StateFolder.open(`${folder}/state`)
  await state.writeTogether(withValue('before'))
  t.equal(await valuesIn(state), BEFORE)
  let moments = 0
  {
    using _watching = watchFiles(`${folder}/state`, () =>
      cpSync(`${folder}/state`, `${folder}/${moments++}`, { recursive: true }),
    )
    await state.writeTogether(withValue('after'))
  }
  t.equal(await valuesIn(state), AFTER)
  await cp(`${folder}/state`, `${folder}/${moments}`, { recursive: true })
  const found: string[] = []
  for (let moment = 0; moment <= moments; moment++) found.push(await afterRestart(`${folder}/${moment}`))
  const turned = found.indexOf(AFTER)
  t.ok(turned > 0, 'at some moment it turns')
  t.ok(found.slice(0, turned).every(values => values === BEFORE))
  t.ok(found.slice(turned).every(values => values === AFTER))
})

t.test('what could not be written together is not brought back later, wherever it failed', async t => {
  await using stack = new AsyncDisposableStack()
  const folder = await scratchFolder(stack)
  let step = 0
  for (let failed = true; failed; step++) {
    const path = `${folder}/${step}`
    await using state = await StateFolder.open(path)
    await state.writeTogether(withValue('before'))
    let count = 0
    {
      using _watching = watchFiles(path, ({ what }) => {
        if (count++ === step) throw systemError('ENOSPC', what)
      })
      failed = await state.writeTogether(withValue('after')).then(
        () => false,
        () => true,
      )
    }
    await state.write('one', { value: 'later' })
    await state[Symbol.asyncDispose]()
    const found = await afterRestart(path)
    t.match(found, failed ? /^later,(before|after),(before|after)$/ : /^later,after,after$/, `change ${step} fails: ${found}`)
  }
  t.ok(step > 5)
})

t.test(
  'a folder that hangs is waited for so long, others fail at once, and what was given up is not written later',
  { skip: hangingFileMissing },
  async t => {
    await using stack = new AsyncDisposableStack()
    const folder = await scratchFolder(stack)
    {
      await using state = await StateFolder.open(folder)
      await state.write('one', { value: 'before' })
    }
    const hung = await hangingFile(stack, `${folder}/one.json.new`, 4096)
    const state = stack.use(await StateFolder.open(folder, 5000))
    hung.hang()
    await t.rejects(state.write('one', { value: 'never' }), {
      name: 'IoError',
      message: /has not answered for 5 s; look at the disk that it is on/,
    })
    await t.rejects(state.write('two', { value: 'other' }), { name: 'IoError', message: /hangs/ })
    await t.rejects(state.read('one', z.json()), { name: 'IoError', message: /hangs/ })
    hung.goOn()
    const written = () =>
      state.write('two', { value: 'other' }).then(
        () => true,
        () => false,
      )
    while (!(await written())) await sleep(20)
    t.match(await readFile(`${folder}/one.json`, 'utf8'), /before/)
  },
)

t.test(
  'where a record cannot be written, and taking back fails as well, it is told as what it is, and all is as before or as after',
  async t => {
    await using stack = new AsyncDisposableStack()
    const { execute, folder, nbd } = await startAppliance(stack, {
      disks: { root: Buffer.alloc(1 << 20), data: Buffer.alloc(1 << 20) },
    })
    const guest = await nbd('db/root')
    const file = (name: string) => ({ disk: 'root', file: `${folder}/${name}.qcow2` })
    const stateOf = async () => {
      const machines = await execute<{ disks: { image: string }[] }[]>('query-machines')
      const checkpoints = await execute<{ name: string; usable: boolean }[]>('query-checkpoints')
      const sessions = await execute<{ name: string }[]>('query-backups')
      return JSON.stringify([
        machines[0]!.disks.map(({ image }) => image),
        checkpoints.map(({ name, usable }) => [name, usable]),
        sessions.length,
      ])
    }
    await execute('checkpoint-create', { machine: 'db', name: 'first' })
    const commands = {
      'checkpoint-create': name => ({ machine: 'db', name }),
      'disk-snapshot': name => ({ machine: 'db', disks: [file(name)] }),
      'backup-begin': name => ({ machine: 'db', mode: 'pull', name, since: 'first', checkpoint: name }),
    } satisfies Record<string, (name: string) => object>
    for (const [command, argumentsFor] of Object.entries(commands)) {
      let moments = 0
      for (let failed = true; failed; moments++) {
        const at = `${command}, all changes from the ${moments}th on fail`
        const name = `${command}-${moments}`
        const before = await stateOf()
        let [count, refused] = [0, 0]
        let told: string | undefined
        {
          using _watching = watchFiles(`${folder}/state`, ({ what, path }) => {
            if (!path.includes('.json') || count++ < moments) return
            refused++
            throw systemError('ENOSPC', what)
          })
          told = await execute(command, argumentsFor(name)).then(() => undefined, messageOf)
        }
        failed = refused > 0
        if (failed && told !== undefined) t.match(told, /^cannot write .*No space left on device/, at)
        t.notMatch(told ?? '', /internal error|suppressed/, at)
        await guest.write(0, Buffer.alloc(512, moments))
        // One more that goes well takes away what was left.
        await execute('checkpoint-create', { machine: 'db', name: `healed-${name}` })
        if (command === 'backup-begin' && told === undefined) await execute('backup-finish', { name })
        const { findings } = await execute<{ findings: object[] }>('checkpoint-repair', { machine: 'db' })
        t.same(findings, [], at)
        await execute('checkpoint-delete', { machine: 'db', name: `healed-${name}` })
        const after = await stateOf()
        const isThere = after.includes(name)
        if (told === undefined) t.ok(isThere, `${at}: what was answered is done`)
        else if (!isThere) t.equal(after, before, at)
        t.notMatch(after, ',false]', at)
      }
      t.ok(moments > 3, `${moments} moments`)
    }
  },
)
