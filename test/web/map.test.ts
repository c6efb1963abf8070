// What is where in an export, over HTTP, judged by nbdinfo.

import { get } from 'node:http'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import t from 'tap'
import type { MapPage } from '../../src/web/map.ts'
import { startAppliance } from '../helpers/appliance.ts'
import { missing, run } from '../helpers/tools.ts'

const MiB = 1 << 20
const GRANULE = 65536

const flat = (extents: MapPage['extents']) =>
  extents.map(({ start, length, data, zero, dirty }) => [start, length, data, zero, dirty])

async function ask(folder: string, path: string) {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: string }>()
  get({ socketPath: join(folder, 'web.sock'), path, headers: { Host: 'localhost' } }, response => {
    text(response).then(body => resolve({ status: response.statusCode!, body }), reject)
  }).once('error', reject)
  return await promise
}

t.test(
  'a program without an NBD client is told what is where in an export, in pages that fit each other',
  { skip: missing('nbdinfo') },
  async t => {
    await using stack = new AsyncDisposableStack()
    const appliance = await startAppliance(stack, { disks: { root: Buffer.alloc(4 * MiB) }, more: 'web: { unix: ./web.sock }' })
    const { folder, execute, nbd } = appliance
    await execute('checkpoint-create', { machine: 'db', name: 'one' })
    const guest = await nbd('db/root')
    await guest.trim(0, 4 * MiB)
    for (const at of [3, 7, 8, 20, 40]) await guest.write(at * GRANULE, Buffer.alloc(GRANULE / 2, 1))
    await execute('backup-begin', { machine: 'db', mode: 'pull', name: 's', since: 'one' })
    await guest.write(60 * GRANULE, Buffer.alloc(GRANULE, 1)) // which the session does not show
    const map = async (query: string) => {
      const { status, body } = await ask(folder, `/map?${query}`)
      return { status, body, page: (status === 200 ? JSON.parse(body) : {}) as MapPage }
    }

    const { page: whole } = await map('export=s/root&bitmap=backup-root')
    t.match(whole, { export: 's/root', size: 4 * MiB, bitmap: 'backup-root' })
    t.notOk('next' in whole)
    const judge = async (context: string) =>
      JSON.parse(await run('nbdinfo', ['--json', `--map=${context}`, appliance.uri('s/root')])) as object[]
    const joined = (of: (extent: MapPage['extents'][number]) => number) => {
      const all: { offset: number; length: number; type: number }[] = []
      for (const extent of whole.extents) {
        const last = all.at(-1)
        if (last?.type === of(extent)) last.length += extent.length
        else all.push({ offset: extent.start, length: extent.length, type: of(extent) })
      }
      return all
    }
    t.match(
      await judge('qemu:dirty-bitmap:backup-root'),
      joined(({ dirty }) => (dirty ? 1 : 0)),
    )
    t.match(
      await judge('base:allocation'),
      joined(({ data, zero }) => (data ? 0 : 1) | (zero ? 2 : 0)),
    )

    const paged: MapPage['extents'][number][] = []
    for (let next: number | undefined = 0, pages = 0; next !== undefined; pages++) {
      const { page } = await map(`export=s/root&bitmap=backup-root&limit=3&offset=${next}`)
      t.ok(page.extents.length <= 3 && pages < 50)
      paged.push(...page.extents)
      next = page.next
    }
    t.same(flat(paged), flat(whole.extents))
    const part = await map(`export=s%2Froot&offset=${7 * GRANULE + 1}&length=${GRANULE}`)
    t.same(
      part.page.extents.reduce((sum, { length }) => sum + length, 0),
      GRANULE,
    )
    t.equal(part.page.extents[0]!.dirty, undefined)
    t.same((await map(`export=db/root&offset=${4 * MiB}`)).page.extents, [])
    for (const [query, status, words] of [
      ['', 400, /say which export/],
      ['export=db/root&limit=0', 400, /limit is from 1 to 10000/],
      ['export=db/root&offset=-1', 400, /must be a number of bytes, not '-1'/],
      ['export=db/root&offset=99999999', 400, /ends at 4194304/],
      ['export=db/root&export=s/root', 400, /more than once/],
      ['export=db/root&start=1', 400, /there is no start; there are export, bitmap, offset/],
      ['export=db/nothing', 404, /Export 'db\/nothing' is not found/],
      ['export=s/root&bitmap=other', 404, /no bitmap other; it has backup-root/],
    ] as const)
      t.match(await map(query), { status, body: words }, query)
    await execute('backup-abort', { name: 's' })
    t.match(await map('export=s/root'), { status: 404 })
  },
)
