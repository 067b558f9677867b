import ControlProtocol

struct UnprotectCommand: Command {
    let spec = CommandSpec(
        name: "unprotect", summary: "end a domain's protection and remove its shadow",
        operands: [.init(name: "DOMAIN")],
        options: [
            .init("from", value: "HOST", help: "Take away the shadow on HOST only; the others go on. Default: all."),
            .init("delete-replica", help: "Delete the replicas of its disks, as far as they were created for it."),
        ] + CommandSpec.Option.client,
        description: [
            "Ends the protection of DOMAIN (name, id or UUID). The guest runs on; its shadow on the other host is removed, "
                + "and nothing of shadow-virt stays behind in the guest's QEMU.",
            "The replicas of its disks stay on the other host, unless --delete-replica is given: protecting the guest again then sends differences only.",
        ],
        examples: [
            .init("shadow-virt unprotect web1", "Stop keeping a shadow of web1"),
            .init("shadow-virt unprotect web1 --delete-replica", "Stop for good, and free the space on the other host"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        var request = ControlRequest(.unprotect, domain: domain, deleteReplica: arguments.has("delete-replica") ? true : nil)
        request.from = arguments.value("from")
        let response = try context.ask(request, arguments, command: spec.name, notice:
            "The protection of \(domain) is still being removed: `shadow-virt status` shows what is left")
        guard let done = response.done else { throw context.unexpected(spec.name) }
        try context.printDone(done, arguments, command: spec.name)
        return ExitCode.ok
    }
}
