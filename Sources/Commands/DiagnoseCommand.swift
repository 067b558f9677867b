import ControlProtocol

struct DiagnoseCommand: Command {
    let spec = CommandSpec(
        name: "diagnose", summary: "put aside what there is to know about a host",
        operands: [.init(name: "HOST", isRequired: false)],
        options: [
            .init("list", help: "Only list the bundles that are there, with HOST those on that host."),
            .init("fetch", value: "BUNDLE", help: "Only copy that bundle of HOST to here."),
        ] + CommandSpec.Option.client,
        description: [
            "Makes one archive of this host, or of HOST, which must be listed in the configuration: status, KPIs, what drift rests on, the BMC's sensors and events, "
                + "the kernel's log, the journal of events, libvirt's logs of the domains, what the guests' agents tell. It stays on that host, below state_dir/diagnose, "
                + "readable by root, and of another host's a copy comes here, below state_dir/diagnose/from-HOST; of each host the last five are kept. After a guest has left "
                + "by itself there is one already.",
        ],
        examples: [
            .init("shadow-virt diagnose", "This host"), .init("shadow-virt diagnose node1", "Another one, with a copy here"),
            .init("shadow-virt diagnose node1 --list", "What node1 has put aside"),
            .init("shadow-virt diagnose node1 --fetch node1-20261121T185119948.tar.gz", "One of these"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let host = arguments.operands.first, isList = arguments.has("list")
        var request = ControlRequest(.diagnose, to: host)
        request.bundle = arguments.value("fetch")
        if isList {
            if request.bundle != nil { throw UsageError(message: "Options '--list' and '--fetch' exclude each other", command: spec.name) }
            request.list = true
        } else if request.bundle != nil, host == nil {
            throw UsageError(message: "Option '--fetch' needs a HOST: whose bundle is it?", command: spec.name)
        }
        let response = try context.ask(request, arguments, command: spec.name, notice: isList ? "" : "The bundle is made all the same")
        if isList {
            guard let list = response.bundles else { throw context.unexpected(spec.name) }
            try context.print(.bundles(list), arguments, command: spec.name)
            context.remark(list.bundles.isEmpty ? "No bundle on \(list.host.printable)" : "In \(list.folder.printable) on \(list.host.printable)", arguments)
            return ExitCode.ok
        }
        guard let done = response.done else { throw context.unexpected(spec.name) }
        // Where it is, is what was asked for.
        try context.print(.done(done), arguments, command: spec.name)
        return ExitCode.ok
    }

    static func text(_ list: BundleList, colour: Bool) -> String {
        guard !list.bundles.isEmpty else { return "" }
        var table = TextTable(columns: [.init("BUNDLE"), .init("SIZE", .right), .init("TIME"), .init("FETCHED-FROM")])
        for one in list.bundles {
            table.add([.init(one.name.printable), .init(Quantity.bytes(UInt64(max(0, one.bytes)))), .init(one.time.printable), .init(one.from?.printable ?? "-")])
        }
        return table.render(colour: colour)
    }
}
