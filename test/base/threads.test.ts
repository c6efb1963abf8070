// How many threads Node has for files: many where disks are served that may hang, few for a command that ends.

import t from 'tap'
import { attempt } from '../helpers/tools.ts'

const module = new URL('../../src/base/threads.js', import.meta.url).href
/** As the kernel counts them, before the first file is looked at by one of them, and after. */
const script = `
  const { readdirSync, promises } = await import('node:fs')
  await import(process.env.THREADS_MODULE)
  const count = () => readdirSync('/proc/self/task').length
  const before = count()
  await promises.stat('/')
  console.log(count() - before)`

async function threadsOf(words: readonly string[], size?: string) {
  const { stdout } = await attempt(process.execPath, ['--input-type=module', '-e', script, '--', ...words], {
    env: { THREADS_MODULE: module, UV_THREADPOOL_SIZE: size },
  })
  return Number(stdout)
}

t.test(
  'who serves disks has a thread for each of many that hang, other commands start quickly, and the user may say',
  async t => {
    for (const words of [['daemon'], ['--json', 'serve', 'offsite', 'db/latest'], ['nbd', 'serve', 'disk.raw']])
      t.equal(await threadsOf(words), 128, words.join(' '))
    for (const words of [[], ['restore', 'offsite', 'db/latest', 'target'], ['image', 'info', 'disk.raw']])
      t.equal(await threadsOf(words), 32, words.join(' '))
    t.equal(await threadsOf(['daemon'], '256'), 256)
    t.equal(await threadsOf(['restore'], '5'), 5)
  },
)
