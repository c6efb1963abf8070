// The scripts that run the tests: what they count is what was there.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../', import.meta.url))
const head = `import t from ${JSON.stringify(`${root}node_modules/tap/dist/esm/index.js`)}\n`

/** Runs test files of these texts, and says how it ended. */
function runTests(texts: Record<string, string>) {
  const cwd = mkdtempSync(join(tmpdir(), 'stillpoint-scripts-'))
  try {
    mkdirSync(join(cwd, 'dist'))
    for (const [name, text] of Object.entries(texts)) writeFileSync(join(cwd, name), text)
    const files = Object.keys(texts).filter(name => !name.endsWith('.map'))
    const { status, stdout } = spawnSync(process.execPath, [join(root, 'scripts/run-tests.mjs'), ...files], {
      cwd,
      encoding: 'utf8',
    })
    return { status, stdout, summary: readFileSync(join(cwd, '.tap/summary'), 'utf8') }
  } finally {
    rmSync(cwd, { recursive: true })
  }
}

t.test('named tests are counted, however they are nested', async t => {
  const { status, summary, stdout } = runTests({
    'nested.mjs': `${head}
      t.test('one', async t => { t.ok(1); t.ok(1) })
      t.test('group', async t => {
        t.test('two', async t => t.ok(1))
        t.test('three', async t => t.ok(1))
        t.test('no tool', { skip: 'there is no such tool' }, async () => {})
      })
      t.test('all skipped', async t => { t.test('inner', { skip: 'as well' }, async () => {}) })`,
    'flat.mjs': `${head} t.ok(1); t.ok(2)`,
  })
  t.equal(summary, '4 passed, 0 failed, 2 skipped\n', stdout)
  t.equal(status, 0)
  t.match(stdout, 'skipped: group > no tool: there is no such tool')
})

t.test('whatever goes wrong is counted and told', async t => {
  const { status, summary, stdout } = runTests({
    'fails.mjs': `${head} t.test('good', async t => t.ok(1)); t.test('group', async t => { t.test('bad', async t => { t.equal(1, 2); t.equal(3, 4) }) })`,
    'beside.mjs': `${head} t.test('good', async t => t.ok(1)); t.equal(1, 2, 'an assertion beside it')`,
    'throws.mjs': `${head} throw new Error('too early')`,
    'dies.mjs': `${head} t.test('dies', async () => { process.kill(process.pid, 'SIGKILL'); await new Promise(() => setInterval(() => {}, 9)) })`,
    'exits.mjs': `${head} t.test('good', async t => t.ok(1)); t.teardown(() => { process.exitCode = 3 })`,
    'empty.mjs': 'console.log("nothing")',
    'dist/compiled.js': `${head} t.equal(1, 2)`,
    // The second line comes from the eleventh.
    'dist/compiled.js.map': JSON.stringify({ version: 3, sources: ['../test/source.ts'], names: [], mappings: 'AAAA;AAUA' }),
    'uncaught.mjs': `${head} t.test('good', async t => t.ok(1))
      t.test('thrown later', () => new Promise(() => setTimeout(() => { throw new Error('out of reach') })))
      t.test('around', async t => { await t.test('not awaited', () => new Promise(() => { Promise.reject(new Error('forgotten')) })) })
      t.test('and on', async t => t.ok(1))`,
    'hangs.mjs': `${head} t.test('good', async t => t.ok(1)); t.test('never', () => new Promise(() => {}))`,
  })
  t.equal(summary, '6 passed, 10 failed\n', stdout)
  t.equal(status, 1)
  for (const told of [
    'group > bad',
    'an assertion beside it',
    'too early',
    'SIGKILL',
    'exit code 3',
    'FAILED: empty.mjs',
    'never',
    'at: test/source.ts:11:',
    'FAILED: thrown later',
    'FAILED: around > not awaited',
  ])
    t.match(stdout, told)
})

t.test('what a test leaves running is ended with it', async t => {
  const { status, stdout } = runTests({
    'leaves.mjs': `${head} import { spawn } from 'node:child_process'
      const { pid } = spawn('sleep', ['600'], { stdio: 'inherit' })
      t.test('left ' + pid, { skip: 'to tell the pid' }, async () => {})
      t.test('good', async t => t.ok(pid)).then(() => process.exit())`,
  })
  t.equal(status, 0, stdout)
  const pid = Number(/left (\d+)/.exec(stdout)?.[1])
  // Killed, though perhaps nobody has collected it yet.
  const state = existsSync(`/proc/${pid}/stat`) ? readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]![0] : 'gone'
  t.match(state, /^(gone|Z|X)$/)
})

t.test('no test at all is a failure', async t => {
  const { status, summary } = runTests({})
  t.equal(summary, '0 passed, 1 failed\n')
  t.equal(status, 1)
})
