// A push target in a folder whose packs wait: as long as a file is there, none is stored. For pushes that are to be met half-way. What the
// file holds is the beginning of the keys that wait instead; beside it, at `.waits`, is one that has waited.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** Writes the plugin; its options are `path`, and `hold`, the file that makes it wait. Returns what `plugin:` says. */
export async function gatedPlugin(folder: string): Promise<string> {
  const path = join(folder, 'gated.mjs')
  await writeFile(
    path,
    `import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { plugin as file } from ${JSON.stringify(new URL('../../plugins/file/index.js', import.meta.url).href)}
export const plugin = {
  name: 'gated',
  options: { safeParse: data => ({ success: true, data }) },
  open: async ({ hold, ...options }, context) => {
    const target = await file.open(options, context)
    const put = target.put.bind(target)
    target.put = async (key, body, options = {}) => {
      while (existsSync(hold) && key.startsWith(readFileSync(hold, 'utf8') || 'packs/')) {
        writeFileSync(hold + '.waits', key)
        await sleep(10, undefined, { signal: options.signal })
      }
      return put(key, body, options)
    }
    return target
  },
}
`,
  )
  return path
}
