// The documentation as a whole: its links lead somewhere, its index has every page, and what is explained is proved by tests that are there.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const textOf = (path: string) => readFileSync(join(root, path), 'utf8')
const filesBelow = (folder: string) =>
  readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => relative(root, join(entry.parentPath, entry.name)))
const docs = filesBelow('docs')
const pages = docs.filter(path => path.endsWith('.md'))

/** Without what is code. */
const proseOf = (path: string) => textOf(path).replaceAll(/^```[^]*?^```$/gm, '')

/** As the web shows a heading's place. */
const anchorsIn = (path: string) =>
  new Set(
    [...proseOf(path).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
      heading!
        .replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1')
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
        .replaceAll(' ', '-'),
    ),
  )

/** What a page links to in this repository: a file, and perhaps a place in it. */
const linksOf = (path: string) =>
  [...proseOf(path).matchAll(/(?<!`)\]\(([^)\s]+)\)/g)]
    .map(([, link]) => link!)
    .filter(link => !/^[a-z]+:/.test(link))
    .map(link => {
      const [file, place] = link.split('#')
      return { link, file: file === '' ? path : join(dirname(path), file!), place }
    })

t.test('every link leads to a file, and to a heading in it', async t => {
  const broken: string[] = []
  let links = 0
  for (const page of [...pages, 'README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md'])
    for (const { link, file, place } of linksOf(page)) {
      links++
      if (!existsSync(join(root, file)) || (place !== undefined && !anchorsIn(file).has(place))) broken.push(`${page}: ${link}`)
    }
  t.same(broken, [])
  t.ok(links > 100, `${links} links`)
})

t.test('the index has every page, and each says what it is for before anything else', async t => {
  const linked = new Set(linksOf('docs/README.md').map(({ file }) => file))
  t.same(
    docs.filter(path => path !== 'docs/README.md' && /\.(md|py)$/.test(path) && !linked.has(path)),
    [],
    'not in the index',
  )
  t.same(
    pages.filter(path => !/^# .+\n\n(?!```|\||#)\S/.test(textOf(path))),
    [],
    'no sentence behind the title',
  )
})

t.test('each claim of an explanation names a test that is there', async t => {
  let proofs = 0
  for (const page of pages.filter(path => path.startsWith('docs/explanation/'))) {
    const claims = [
      ...proseOf(page)
        .split('## What nobody can make good')[0]!
        .matchAll(/^- [^]*?(?=^- |^$)/gm),
    ].map(([claim]) => claim)
    t.ok(claims.length > 10, page)
    for (const claim of claims) {
      const named = [...claim.matchAll(/^ {2}`(test\/[\w./-]+)`: (.+)$/gm)]
      if (named.length === 0) t.fail(`${page} has no test for: ${claim}`)
      for (const [, file, title] of named) {
        proofs++
        t.ok(textOf(file!).includes(title!.replaceAll("'", '’')) || textOf(file!).includes(title!), `${file} has: ${title}`)
      }
    }
  }
  t.ok(proofs > 40)
})
