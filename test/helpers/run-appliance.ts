// Runs the appliance as a process of its own: `node run-appliance.js CONFIG`. Ends when it is told to quit, or by SIGTERM.

import { Appliance } from '../../src/appliance.ts'
import { createLog } from '../../src/base/log.ts'
import { loadSettings } from '../../src/settings/load.ts'

const asked = Promise.withResolvers<void>()
process.once('SIGTERM', () => asked.resolve())
await using appliance = await Appliance.start(await loadSettings(process.argv[2]!), createLog('warn'))
await Promise.race([asked.promise, appliance.quitAsked])
