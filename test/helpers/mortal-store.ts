// A push target in a folder that kills the process that uses it at a certain request: as long as a file is there the requests are counted, and
// what it holds says at which one, before it is made or once it is done. The file goes with the process, so that the next one lives.

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'

export interface Death {
  /** The number of the request, from 0. */
  readonly at: number
  readonly when: 'before' | 'after'
}

/** Writes the plugin; its options are `path`, and `death`, the file. Returns what `plugin:` says. */
export async function mortalPlugin(folder: string): Promise<string> {
  const path = join(folder, 'mortal.mjs')
  await writeFile(
    path,
    `import { existsSync, readFileSync, rmSync } from 'node:fs'
import { plugin as file } from ${JSON.stringify(new URL('../../plugins/file/index.js', import.meta.url).href)}
let requests = 0
export const plugin = {
  name: 'mortal',
  options: { safeParse: data => ({ success: true, data }) },
  open: async ({ death, ...options }, context) => {
    const target = await file.open(options, context)
    for (const name of ['put', 'get', 'delete']) {
      const request = target[name].bind(target)
      target[name] = async (...args) => {
        if (!existsSync(death)) return request(...args)
        const { at, when } = JSON.parse(readFileSync(death, 'utf8'))
        if (requests++ !== at) return request(...args)
        if (when === 'after') await request(...args)
        rmSync(death)
        process.kill(process.pid, 'SIGKILL')
        return new Promise(() => 'nobody is there to see it')
      }
    }
    return target
  },
}
`,
  )
  return path
}
