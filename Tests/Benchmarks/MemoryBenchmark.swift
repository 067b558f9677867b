enum MemoryBenchmark { static func run(_ bench: Bench) throws { throw BenchFailure("not written yet") } }
