import Glibc

HookProgram.limitTime()
HookProgram.goFirst()
HookProgram.run(CommandLine.arguments.dropFirst())
exit(0)
