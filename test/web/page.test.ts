// The status page in a real browser: what a person sees of it, on a phone and on a desk, by day and by night, by keyboard and by ear.

import t from 'tap'
import { Browser, noBrowser } from '../helpers/browser.ts'
import { startAppliance } from '../helpers/appliance.ts'

const MiB = 1 << 20

const start = async (stack: AsyncDisposableStack, more = '') => {
  const world = await startAppliance(stack, {
    disks: { root: Buffer.alloc(64 * MiB), data: Buffer.alloc(MiB) },
    more: `web: { listen: "127.0.0.1:0" }\n${more}`,
  })
  const address = world.appliance.webAddress
  if (typeof address !== 'object' || !address) throw new Error('it listens nowhere')
  return { ...world, url: `http://127.0.0.1:${address.port}/` }
}

/** Texts whose contrast with what is behind them is below WCAG's 4.5, of all that are seen. */
const FAINT = `(() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number)
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const behind = element => { for (let e = element; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  const faint = []
  let looked = 0
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement
    if (!walker.currentNode.data.trim() || element.closest('svg, noscript') || !element.checkVisibility()) continue
    looked++
    const [a, b] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))]
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    if (contrast < 4.5) faint.push(walker.currentNode.data + ' ' + contrast.toFixed(2))
  }
  return { looked, faint }
})()`

t.test('a person sees machines, what changed where, what is under way and what is wrong', { skip: noBrowser }, async t => {
  await using stack = new AsyncDisposableStack()
  const more = `repositories: { gone: { plugin: file, path: ./nowhere } }
schedules: { nightly: { machines: [db], repository: gone, at: '*-*-* 02:00', stale-after: 26h, retries: 0 } }
`
  const { url, nbd, execute, appliance } = await start(stack, more)
  const hostile = '<img src=x onerror=alert(1)><script>alert(2)</script>'
  await execute('checkpoint-create', { machine: 'db', name: 'first', description: hostile })
  const root = await nbd('db/root')
  await root.write(32 * MiB, Buffer.alloc(4 * MiB, 1))
  const browser = await Browser.start(stack)
  await browser.look({ width: 1280 })
  await browser.open(url)
  await browser.until(`document.querySelector('.strip rect')`)

  t.equal(await browser.value('document.title.replace(/ [^ ]+$/, "")'), '(!) Stillpoint', 'the tab says that something is wrong')
  await browser.until(`document.querySelector('#state').textContent === '1 problem, 1 notice'`)
  t.match(
    await browser.value('document.querySelector("#concerns").innerText'),
    /Problem\s+schedule nightly\s+has never made a good backup of db/,
  )
  t.match(await browser.value('document.querySelector("#machines").innerText'), /db[^]*2 disks, 65 MiB[^]*4 MiB/)
  const words = await browser.value<string>(`document.querySelector('.strip').getAttribute('aria-label')`)
  t.match(words, /^4 MiB changed, \d+ % of that between 32 MiB and 38\.4 MiB$/)
  const seen = await browser.value<{ from: number; to: number }>(`(() => {
    const whole = document.querySelector('.strip').getBoundingClientRect()
    const rect = document.querySelector('.strip rect').getBoundingClientRect()
    return { from: (rect.left - whole.left) / whole.width, to: (rect.right - whole.left) / whole.width }
  })()`)
  t.ok(Math.abs(seen.from - 0.5) < 0.005 && Math.abs(seen.to - 0.5625) < 0.005, JSON.stringify(seen))

  // As it is told to those who do not see it.
  const tree = await browser.accessible()
  const has = (role: string, name: RegExp) => tree.some(node => node.role === role && name.test(node.name))
  for (const [role, name] of [
    ['main', /^/],
    ['banner', /^/],
    ['contentinfo', /^/],
    ['navigation', /^Sections$/],
    ['heading', /Stillpoint/],
    ['heading', /^Machines$/],
    ['heading', /^db$/],
    ['status', /^/],
    ['table', /^Disks of db$/],
    ['table', /^What changed on db\/root, from one checkpoint to the next$/],
    ['columnheader', /^Changed$/],
    ['rowheader', /^first/],
    ['image', /^4 MiB changed/],
    ['image', /^From .* to now: 1 in checkpoints$/],
  ] as const)
    t.ok(has(role, name), `${role} ${name}`)

  // Whatever the daemon says is text.
  await browser.value(`document.querySelector('.times summary').click()`)
  t.match(await browser.value('document.querySelector(".times").innerText'), hostile)
  t.equal(await browser.value('document.querySelectorAll("main img, main script").length'), 0)

  // By keyboard.
  await browser.value('document.activeElement.blur()')
  await browser.press('Tab', 9)
  t.equal(await browser.value('document.activeElement.textContent'), 'Skip to the status')
  t.ok(await browser.value('document.activeElement.getBoundingClientRect().left >= 0'), 'it is seen while it has the focus')

  // What is begun is shown without being asked for; what was opened stays open.
  await execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 64 * MiB })
  await execute('blockdev-backup', { 'job-id': 'copy', device: 'db.root', target: 'n', sync: 'full', 'auto-finalize': false })
  await browser.until(`/Backup job copy[^]*pending · 100 % · 64 MiB of 64 MiB/.test(document.querySelector('#now').innerText)`)
  await execute('checkpoint-create', { machine: 'db', name: 'second' })
  await browser.until(`/second/.test(document.querySelector('#machines').innerText)`)
  t.ok(await browser.value(`document.querySelector('.times details').open`))

  for (const look of [{ width: 390, dark: true }, { width: 1280 }]) {
    await browser.look(look)
    const name = `${look.width} ${look.dark ? 'dark' : 'light'}`
    const { looked, faint } = await browser.value<{ looked: number; faint: string[] }>(FAINT)
    t.same(faint, [], `all can be read: ${name}`)
    t.ok(looked > 50, `${looked} texts`)
    t.ok(await browser.value('document.documentElement.scrollWidth <= innerWidth'), `nothing sticks out: ${name}`)
    t.equal(
      await browser.value('getComputedStyle(document.body).backgroundColor'),
      look.dark ? 'rgb(19, 21, 22)' : 'rgb(251, 251, 249)',
    )
  }
  await browser.look({ width: 1280, reducedMotion: true })
  t.equal(
    await browser.value(`getComputedStyle(document.querySelector('progress'), '::-webkit-progress-value').transitionProperty`),
    'none',
  )
  t.same(browser.complaints, [], 'the browser had nothing to complain of, its policy neither')

  await execute('job-finalize', { id: 'copy' })
  await appliance[Symbol.asyncDispose]()
  await browser.until(`!document.querySelector('#lost').hidden`)
  t.match(
    await browser.value('document.querySelector("#lost").innerText'),
    /^No answer from the daemon .* What is shown is of \d\d:\d\d\./,
  )
  t.equal(await browser.value('document.querySelector("#state").textContent'), 'Not known')
})
