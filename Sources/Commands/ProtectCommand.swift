import ControlProtocol

struct ProtectCommand: Command {
    let spec = CommandSpec(
        name: "protect", summary: "keep a live shadow of a domain on another host",
        operands: [.init(name: "DOMAIN")],
        options: [
            .init("to", value: "HOST", isRequired: true, help: "The host that holds the shadow: a name from 'peers' in the configuration."),
            .init("interval", value: "TIME", help: "Time between two epochs, 5ms to 60s: 20ms, 0.5s, 1s; a plain number means milliseconds. "
                + "Default: interval_ms of the configuration."),
            .init("without-disks", help: "Protect RAM and device state only. After a failover the guest meets whatever its disks hold over there."),
            .init("no-wait", help: "Return as soon as the first copy has begun."),
        ] + CommandSpec.Option.client,
        description: [
            "Starts a shadow of DOMAIN (name, id or UUID) on HOST and copies everything that the guest changes there, one consistent "
                + "epoch after another. Without --no-wait it returns once the shadow holds the first epoch: from then on a failure of this host costs at most one epoch.",
            "The guest keeps running throughout. Ctrl-C ends the waiting only.",
        ],
        examples: [
            .init("shadow-virt protect web1 --to b", "Keep a shadow of web1 on host b"),
            .init("shadow-virt protect web1 --to b --interval 100ms --no-wait", "An epoch every 100 ms; don't wait for the first copy"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        var intervalMs: Double?
        if let text = arguments.value("interval") {
            do {
                intervalMs = try Interval.parse(text)
            } catch {
                throw UsageError(message: "Option '--interval': \(error)", command: spec.name)
            }
        }
        let request = ControlRequest(.protect, domain: domain, to: arguments.value("to"), intervalMs: intervalMs,
                                     withoutDisks: arguments.has("without-disks"), wait: !arguments.has("no-wait"))
        let response = try context.ask(request, arguments, command: spec.name, notice:
            "The first copy goes on in the background: `shadow-virt status \(domain)` shows it, `shadow-virt unprotect \(domain)` ends it")
        guard let done = response.done else { throw context.unexpected(spec.name) }
        try context.printDone(done, arguments, command: spec.name)
        return ExitCode.ok
    }
}
