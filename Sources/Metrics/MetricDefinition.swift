/// A metric of a kind of thing: its name, and how its samples are read off one of them.
struct MetricDefinition<Subject: Sendable>: Sendable {
    typealias Sample = MetricFamily.Sample

    var name: String
    var kind: MetricFamily.Kind
    var help: String
    /// Values with the labels that it has beside the common ones; none where there is nothing to tell.
    var samples: @Sendable (Subject) -> [Sample]

    /// - Parameter name: without the prefix that all of the service's metrics have.
    init(_ name: String, _ kind: MetricFamily.Kind, _ help: String, samples: @escaping @Sendable (Subject) -> [Sample]) {
        self.name = "shadowvirt_" + name
        self.kind = kind
        self.help = help
        self.samples = samples
    }

    init(_ name: String, _ kind: MetricFamily.Kind, _ help: String, value: @escaping @Sendable (Subject) -> Double?) {
        self.init(name, kind, help, samples: { subject in value(subject).map { [Sample($0)] } ?? [] })
    }

    /// `subjects` with the labels that all metrics of each have.
    func family(_ subjects: [(labels: [MetricFamily.Label], subject: Subject)]) -> MetricFamily {
        MetricFamily(name, kind, help, subjects.flatMap { entry in
            samples(entry.subject).map { Sample($0.value, labels: entry.labels + $0.labels, suffix: $0.suffix) }
        })
    }
}
