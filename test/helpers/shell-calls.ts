// The calls of a program in a piece of shell, without running any of it: what stands in documentation may write anywhere.
//
// It knows what such pieces have: quotes, comments, pipes, lists, redirections, `$(...)`, here-documents, and the words of loops and conditions.

const KEYWORDS = new Set(['then', 'do', 'else', 'elif', 'if', 'until', 'while', '{', '!', 'nohup', 'time'])
/** What runs another program: the words behind it are that one's. */
const RUNNERS = [/^runuser -u \S+ -- /, /^systemd-run .*?(?=stillpoint )/]

/** The arguments of each call of `program`, in their order; variables stay as they are written. */
export const callsOf = (script: string, program: string): string[][] =>
  simpleCommands(script).flatMap(words => {
    let rest = words
    while (rest.length > 0 && (KEYWORDS.has(rest[0]!) || /^\w+=/.test(rest[0]!))) rest = rest.slice(1)
    for (const runner of RUNNERS) {
      const [ran] = runner.exec(`${rest.join(' ')} `) ?? []
      if (ran !== undefined) rest = rest.slice(ran.trimEnd().split(' ').length)
    }
    return rest[0] === program ? [rest.slice(1)] : []
  })

/** A here-document is no command. */
const withoutDocuments = (script: string) => script.replaceAll(/<<'?(\w+)'?(.*)\n[^]*?^\1$/gm, '$2')

function simpleCommands(script: string): string[][] {
  const commands: string[][] = [[]]
  let word: string | undefined
  let skipsNext = false
  const endWord = () => {
    if (word !== undefined && !skipsNext) commands.at(-1)!.push(word)
    if (word !== undefined) skipsNext = false
    word = undefined
  }
  const tokens = /\\\n|\\.|'[^']*'|"(?:[^"\\]|\\.)*"|(?<=^|\s)#[^\n]*|\d?>>?(?:&\d)?|<\(|<|\$\(|&&|\|\||[\n;&|()]|[ \t]+|./gs
  for (const [token] of withoutDocuments(script).matchAll(tokens)) {
    if (token === '\\\n' || /^[ \t]/.test(token)) endWord()
    else if (token.startsWith("'") && token.length > 1) word = (word ?? '') + token.slice(1, -1)
    else if (token.startsWith('"') && token.length > 1) word = (word ?? '') + token.slice(1, -1).replaceAll(/\\(["\\$`])/g, '$1')
    else if (token.startsWith('\\')) word = (word ?? '') + token.slice(1)
    else if (token.startsWith('#') && token.length > 1) endWord()
    else if (/^(\d?>>?|<)$/.test(token)) {
      endWord()
      skipsNext = true
    } else if (/^\d?>>?&\d$/.test(token)) endWord()
    else if (/^(<\(|\$\(|&&|\|\||[\n;&|()])$/.test(token)) {
      endWord()
      commands.push([])
    } else word = (word ?? '') + token
  }
  endWord()
  return commands.filter(words => words.length > 0)
}
