// Locks on files: one process at a time, whatever way it locks, and gone with it however it ends.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import { lockFile } from '../../src/base/file-lock.ts'
import { native } from '../../src/base/native.ts'

const module = new URL('../../src/base/file-lock.js', import.meta.url).href

/** Another process that has the lock once it has said so. */
async function holder(path: string, env: NodeJS.ProcessEnv) {
  const program = `const { lockFile } = await import(${JSON.stringify(module)})
    const lock = await lockFile(${JSON.stringify(path)})
    console.log(lock ? 'locked' : 'refused')
    setInterval(() => lock, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'inherit'], env })
  const [said] = (await once(child.stdout, 'data')) as [Buffer]
  return { child, said: said.toString().trim() }
}

for (const [how, env] of [
  ['with native help', {}],
  ['without native help', { STILLPOINT_NATIVE: 'off' }],
] as const) {
  t.test(
    `a lock that another process took ${how} is refused, and free once it was killed`,
    { skip: !native && 'koffi does not load here' },
    async t => {
      const path = `${t.testdir()}/lock`
      const { child, said } = await holder(path, { ...process.env, ...env })
      t.equal(said, 'locked')
      t.equal(await lockFile(path), undefined)
      const other = await holder(path, { ...process.env, STILLPOINT_NATIVE: 'off' })
      t.equal(other.said, 'refused')
      for (const process of [child, other.child]) {
        process.kill('SIGKILL')
        await once(process, 'exit')
      }
      const lock = await lockFile(path)
      t.ok(lock)
      await lock![Symbol.asyncDispose]()
    },
  )
}

t.test('a folder that is not there is told', async t => {
  await t.rejects(lockFile(`${t.testdir()}/nope/lock`), { message: /^cannot lock .*No such file or directory$/ })
})
